# SPDX-License-Identifier: Apache-2.0
"""Folders of peft onto any base whose linear layers peft sees, and back, with equal outputs.

A folder names layers of a model; the waist names ops of blocks. Which layer holds which op is read off the model
itself: the layer whose weight is the op's, or holds it among its rows. From a folder nothing is imported or evaluated:
its layers are looked up among those of the model, and its settings among those that are known here.
"""

import os
import re
from typing import Any, Callable, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Tuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..backbones.attach import add_methods, attach
from ..backbones.family import backbone_in
from ..backbones.from_data import methods_from_data
from ..tuning import find_backbone, head_keys, unwrap
from ..weights.errors import WeightFileError
from ..weights.export_peft import write_peft
from ..weights.guards import read_safetensors_header
from ..weights.kinds import file_kind, read_tensors
from ..weights.reading import as_path, read_json
from . import peft_factors, peft_low_rank
from .peft_layers import CONFIG, Slot, check_called, layer_slots, same_layer

TENSORS = 'adapter_model.safetensors'
#: Settings of all kinds that change nothing about what the tensors mean.
_FREE = frozenset({
    'auto_mapping', 'base_model_name_or_path', 'bias', 'exclude_modules', 'inference_mode', 'layers_pattern',
    'layers_to_transform', 'modules_to_save', 'peft_type', 'peft_version', 'revision', 'target_modules', 'task_type'
})
#: Initialisations that leave the base as it was.
_PLAIN_INIT = (True, False, None, 'gaussian', 'orthogonal', 'eva')


class Kind(NamedTuple):
    """One kind of folder: methods that it holds, names of a layer's tensors, settings that are known, and how it is
    read and written."""
    methods: Tuple[str, ...]
    parts: Tuple[str, ...]
    known: FrozenSet[str]
    read: Callable[..., Any]
    write: Callable[..., Any]


_PATTERNS = frozenset({'r', 'rank_pattern', 'alpha_pattern'})
KINDS: Dict[str, Kind] = {
    'LORA': Kind(('LoRA', 'DoRA'), ('lora_A.weight', 'lora_B.weight', 'lora_magnitude_vector'), _PATTERNS | {
        'init_lora_weights', 'lora_alpha', 'lora_dropout', 'megatron_core', 'qalora_group_size', 'use_dora',
        'use_rslora'
    }, peft_low_rank.read_lora, peft_low_rank.write_lora),
    'LOHA': Kind(('LoHa', ), ('hada_w1_a', 'hada_w1_b', 'hada_w2_a', 'hada_w2_b'),
                 _PATTERNS | {'alpha', 'init_weights'}, peft_low_rank.read_loha, peft_low_rank.write_loha),
    'LOKR': Kind(('LoKr', ), ('lokr_w1', 'lokr_w1_a', 'lokr_w1_b', 'lokr_w2', 'lokr_w2_a', 'lokr_w2_b'),
                 _PATTERNS | {'alpha', 'init_weights', 'decompose_both', 'decompose_factor'}, peft_low_rank.read_lokr,
                 peft_low_rank.write_lokr),
    'IA3': Kind(('IA3', ), ('ia3_l', ), frozenset({'feedforward_modules', 'init_ia3_weights'}), peft_factors.read_ia3,
                peft_factors.write_ia3),
    'VERA': Kind(('VeRA', ), ('vera_lambda_b', 'vera_lambda_d'), frozenset({
        'r', 'd_initial', 'init_weights', 'projection_prng_key', 'save_projection', 'vera_dropout'
    }), peft_factors.read_vera, peft_factors.write_vera),
    'OFT': Kind(('OFT', ), ('oft_R.weight', ), frozenset({
        'r', 'block_share', 'eps', 'init_weights', 'num_cayley_neumann_terms', 'oft_block_size', 'use_cayley_neumann'
    }), peft_factors.read_oft, peft_factors.write_oft),
}
_SHARED = re.compile(r'base_model\.(?P<part>vera_[AB])')
MAX_CONFIG = 1 << 20


# -- reading ----------------------------------------------------------------------------------------------------------


def load_peft(model: nn.Module, folder: str) -> Dict[str, Any]:
    """Put a peft folder onto a model, in place, with the outputs that peft gives.

    Args:
        model: A supported backbone or a model that holds one, with the weights on which the adapter was trained;
            methods must not be attached yet. Names of layers may lack or have a prefix that the folder's do not.
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``; of a kind in ``KINDS``.

    Returns:
        The folder's config.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: One line that names the folder, and the setting or the layer that does not fit; the model keeps its
            weights.
    """
    # Read and checked in full before the model is touched.
    config, tensors = read_folder(folder)
    target = unwrap(model)
    backbone = backbone_in(target)
    if not hasattr(backbone, 'petl'):
        attach(backbone)
    if len(backbone.petl):
        raise ValueError(f'{folder}: the model already holds {", ".join(backbone.petl)}; load a folder of peft onto a '
                         'model without methods')
    slots = layer_slots(target)
    parts, outside = _by_layer(target, folder, config, tensors, slots)
    configs, values = KINDS[config['peft_type']].read(folder, config, parts, slots)
    stored = sum(t.numel() for t in tensors.values())
    # Three times what is stored: fused layers are read once per op.
    add_methods(backbone, methods_from_data(configs, [b.spec for b in backbone.petl.blocks], folder, 3 * stored))
    parameters = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers()),
                  **{f'outside.{k}': v for k, v in target.state_dict().items()}}
    with torch.no_grad():
        for name, value in {**values, **{f'outside.{k}': v for k, v in outside.items()}}.items():
            parameters[name].copy_(value)
    print_log(f'peft folder {folder}: {len(tensors)} tensors of {config["peft_type"]}, {len(parts)} layers', 'current')
    return config


def read_folder(folder: str) -> Tuple[Dict[str, Any], Dict[str, Tensor]]:
    """Config and tensors of a peft folder, the config checked.

    Raises:
        FileNotFoundError: If a file is missing.
        WeightFileError: If the config cannot be read, is of another kind, or has a setting that is not known here.
    """
    folder = as_path(folder, 'folder')
    path = os.path.join(folder, CONFIG)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{folder} has no {CONFIG}: name a folder of peft, which holds it and {TENSORS}')
    config = read_json(path, MAX_CONFIG)
    if not isinstance(config, dict):
        raise WeightFileError(path, 'not a table', 'save the adapter again')
    kind = config.get('peft_type')
    if kind not in KINDS:
        raise WeightFileError(path, f'peft_type {kind!r:.40} is not read here', f'known: {", ".join(KINDS)}')
    for key, value in config.items():
        # An unknown setting that is off means nothing; one that is on may mean anything.
        if key not in _FREE | KINDS[kind].known and value not in (None, False, '', [], {}):
            raise WeightFileError(path, f'{key}={value!r:.60} is not read here', 'merge it with peft, or train without')
    if config.get('bias', 'none') != 'none':
        raise WeightFileError(path, f"bias={config['bias']!r:.40} is not read here", "only 'none' is")
    if config.get('init_lora_weights', True) not in _PLAIN_INIT:
        raise WeightFileError(path, f"init_lora_weights={config['init_lora_weights']!r:.40} changes the base",
                              'let peft convert the adapter to a plain LoRA first')
    return config, _tensors(os.path.join(os.path.expanduser(folder), TENSORS))


def _tensors(path: str) -> Dict[str, Tensor]:
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path} is not there: save the adapter with safe_serialization=True')
    if file_kind(path) != 'safetensors':
        raise WeightFileError(path, 'not a safetensors file', 'save the adapter again')
    entries, _ = read_safetensors_header(path, os.path.getsize(path))
    return dict(read_tensors(path, list(entries)))


def _by_layer(model: nn.Module, folder: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor],
              slots: Mapping[str, List[Slot]]) -> Tuple[Dict[str, Dict[str, Tensor]], Dict[str, Tensor]]:
    """Tensors by layer of the model and part, and those that lie outside the backbone, by key of the model."""
    parts: Dict[str, Dict[str, Tensor]] = {}
    outside: Dict[str, Tensor] = {}
    state = model.state_dict()
    heads = set(head_keys(model))
    kind = KINDS[config['peft_type']]
    of_layer = re.compile(r'base_model\.model\.(?P<path>.+)\.(?P<part>' + '|'.join(map(re.escape, kind.parts)) + ')')
    for key, tensor in tensors.items():
        match = of_layer.fullmatch(key)
        shared = _SHARED.fullmatch(key) if kind.methods == ('VeRA', ) else None
        if shared is not None:
            parts.setdefault(peft_factors.SHARED, {})[shared['part']] = tensor
            continue
        if match is None:
            name = key.removeprefix('base_model.model.')
            # peft's modules_to_save may name any module; only those of the head are taken.
            if name not in heads or state[name].shape != tensor.shape:
                raise ValueError(f'{folder}: {key} is neither a factor nor a parameter of the head of '
                                 f'{type(model).__name__}')
            outside[name] = tensor
            continue
        layer = _layer_named(model, match['path'], slots)
        if layer is None:
            raise ValueError(f'{folder}: {type(model).__name__} has no adapted layer {match["path"]!r:.120}; it has '
                             f'{", ".join(list(slots)[:3])} ...')
        check_called(model, layer, slots[layer], folder)
        parts.setdefault(layer, {})[match['part']] = tensor
    if not parts:
        raise ValueError(f'{folder}: no factor among the tensors')
    return parts, outside


def _layer_named(model: nn.Module, path: str, slots: Mapping[str, List[Slot]]) -> Optional[str]:
    backbone, _ = find_backbone(model)
    own_names = backbone.petl.family.own_names
    names = [path]
    if own_names is not None:
        # Layers of transformers have changed their names between versions; the folder may have the old ones.
        names += [next(iter(own_names(backbone, {f'{path}.weight': torch.empty(0)}))).removesuffix('.weight')]
    for name in names:
        if name in slots:
            return name
    # One name may have a prefix that the other lacks, as a classifier's model inside has.
    fitting = [layer for layer in slots if any(same_layer(layer, name) for name in names)]
    # Two candidates would be a guess.
    return fitting[0] if len(fitting) == 1 else None


# -- writing ----------------------------------------------------------------------------------------------------------


def save_peft(model: nn.Module, folder: str) -> List[str]:
    """Write the methods of a model as a peft folder for the same model without mmpetl.

    Args:
        model: Model with methods of one kind in ``KINDS`` attached, nothing else.
        folder: Gets ``adapter_config.json`` and ``adapter_model.safetensors``; the head, where it trains, is among
            peft's ``modules_to_save``.

    Returns:
        Lines that say what was written.

    Raises:
        ValueError: If another method or a tuned base parameter is there, or peft would have no effect.
    """
    target = unwrap(model)
    backbone, prefix = find_backbone(target)
    kinds = {type(m).__name__ for m in backbone.petl.values()}
    kind = next((k for k in KINDS.values() if len(kinds) == 1 and kinds <= set(k.methods)), None)
    if kind is None:
        known = ', '.join(name for k in KINDS.values() for name in k.methods)
        raise ValueError(f'a folder of peft holds one of {known}; this model holds '
                         f'{", ".join(sorted(kinds)) or "no method"}')
    if backbone.petl.tune:
        raise ValueError(f'the adapter also changes base parameters ({", ".join(backbone.petl.tune[:3])}), which a '
                         'peft folder cannot hold')
    base = getattr(backbone, 'base_name', None) or getattr(getattr(target, 'config', None), '_name_or_path', None)
    slots = layer_slots(target)
    state, config = kind.write(target, slots, base or None)
    # Layers that upstream fuses in another way have no place in a folder of peft.
    if not state:
        raise ValueError(f'no linear layer of {type(target).__name__} holds an adapted op, so peft has no effect')
    state = {f'base_model.{"" if _SHARED.fullmatch(f"base_model.{key}") else "model."}{key}': value
             for key, value in state.items()}
    heads = head_keys(target)
    if heads:
        config['modules_to_save'] = sorted({key.rsplit('.', 1)[0] for key in heads})
        values = target.state_dict()
        state.update({f'base_model.model.{key}': values[key] for key in heads})
    write_peft(folder, state, config)
    return [f'{len(state)} tensors of {kinds.pop()} for {type(target).__name__}; base {base!r}']
