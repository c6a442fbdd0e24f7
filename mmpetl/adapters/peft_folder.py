# SPDX-License-Identifier: Apache-2.0
"""Folders of peft onto any base whose linear layers peft sees, and back, with equal outputs.

A folder names layers of a model; the waist names ops of blocks. Which layer holds which op is read off the model
itself: the layer whose weight is the op's, or holds it among its rows. From a folder nothing is imported or evaluated:
its layers are looked up among those of the model, and its settings among those that are known here.
"""

import glob
import logging
import os
import re
from typing import Any, Callable, Collection, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Set, Tuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..backbones.as_it_was import as_it_was
from ..backbones.attach import add_methods, attach, build_methods
from ..backbones.family import backbone_in
from ..backbones.from_data import methods_from_data
from ..tuning import find_backbone, head_keys, unwrap
from ..weights.errors import WeightFileError
from ..weights.export_peft import write_peft
from ..weights.guards import read_safetensors_header
from ..weights.hub import PEFT_PICKLED as PICKLED  # read without executing anything
from ..weights.hub import PEFT_TENSORS as TENSORS
from ..weights.io import load_file
from ..weights.kinds import file_kind, read_tensors
from ..weights.reading import as_path, read_json
from . import peft_factors, peft_low_rank
from .peft_layers import Slot, check_called, layer_slots
from .peft_names import CONFIG, by_layer, check_settings, left_out
from .peft_whole import NORMS, WholeParameters, names_of, norm_of, taken_too, tuned_state

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
    #: What peft takes for settings that a folder does not have.
    defaults: Mapping[str, Any] = {}


_PATTERNS = frozenset({'r', 'rank_pattern', 'alpha_pattern'})
_LORA = frozenset({'init_lora_weights', 'lora_alpha', 'lora_dropout', 'megatron_core', 'qalora_group_size'})
KINDS: Dict[str, Kind] = {
    'LORA': Kind(('LoRA', 'DoRA'), ('lora_A.weight', 'lora_B.weight', 'lora_magnitude_vector'),
                 _LORA | _PATTERNS | {'eva_config', 'use_dora', 'use_rslora'}, peft_low_rank.read_lora,
                 peft_low_rank.write_lora, dict(r=8, lora_alpha=8)),
    # Of its settings the scale depends on init_r and lora_alpha alone; the others are of its training.
    'ADALORA': Kind(('AdaLoRA', ), ('lora_A', 'lora_B', 'lora_E'), _LORA | _PATTERNS | {
        'beta1', 'beta2', 'deltaT', 'init_r', 'orth_reg_weight', 'target_r', 'tfinal', 'tinit', 'total_step',
        'use_rslora'
    }, peft_low_rank.read_adalora, peft_low_rank.write_adalora, dict(init_r=12, lora_alpha=8)),
    'LOHA': Kind(('LoHa', ), ('hada_w1_a', 'hada_w1_b', 'hada_w2_a', 'hada_w2_b'),
                 _PATTERNS | {'alpha', 'init_weights'}, peft_low_rank.read_loha, peft_low_rank.write_loha,
                 dict(r=8, alpha=8)),
    'LOKR': Kind(('LoKr', ), ('lokr_w1', 'lokr_w1_a', 'lokr_w1_b', 'lokr_w2', 'lokr_w2_a', 'lokr_w2_b'),
                 _PATTERNS | {'alpha', 'init_weights', 'decompose_both', 'decompose_factor'}, peft_low_rank.read_lokr,
                 peft_low_rank.write_lokr, dict(r=8, alpha=8)),
    'IA3': Kind(('IA3', ), ('ia3_l', ), frozenset({'feedforward_modules', 'init_ia3_weights'}), peft_factors.read_ia3,
                peft_factors.write_ia3),
    'VERA': Kind(('VeRA', ), ('vera_lambda_b', 'vera_lambda_d'), frozenset({
        'r', 'd_initial', 'init_weights', 'projection_prng_key', 'save_projection', 'vera_dropout'
    }), peft_factors.read_vera, peft_factors.write_vera),
    'OFT': Kind(('OFT', ), ('oft_R.weight', ), frozenset({
        'r', 'block_share', 'eps', 'init_weights', 'num_cayley_neumann_terms', 'oft_block_size', 'use_cayley_neumann'
    }), peft_factors.read_oft, peft_factors.write_oft),
    'BOFT': Kind(('BOFT', ), ('boft_R', 'boft_s'), frozenset({
        'boft_block_num', 'boft_block_size', 'boft_n_butterfly_factor', 'init_weights'
    }), peft_factors.read_boft, peft_factors.write_boft),
    # Norms, or other layers, that train themselves: no method, tuned parameters of the base alone.
    NORMS: Kind((), (), frozenset(), lambda *_: ([], {}), lambda *_: ({}, {})),
}
_SHARED = re.compile(r'base_model\.(?P<part>vera_[AB])')
#: Kinds that write before a text's embeddings or into a language model's cache of keys and values.
_PROMPTS = ('ADAPTION_PROMPT', 'CARTRIDGE', 'CPT', 'MULTITASK_PROMPT_TUNING', 'PREFIX_TUNING', 'PROMPT_TUNING',
            'P_TUNING')
MAX_CONFIG = 1 << 20


# -- reading ----------------------------------------------------------------------------------------------------------


class Opened(NamedTuple):
    """A folder that fits a model: its config, configs of methods, and tensors (...): of methods by their names in the
    backbone, of base parameters that it trains by theirs, and of the head by the model's keys."""
    config: Dict[str, Any]
    methods: List[Dict[str, Any]]
    values: Dict[str, Tensor]
    tuned: Dict[str, Tensor]
    head: Dict[str, Tensor]


def load_peft(model: nn.Module, folder: str) -> Dict[str, Any]:
    """Put a peft folder onto a model, in place, with the outputs that peft gives.

    Args:
        model: A supported backbone or a model that holds one, with the weights on which the adapter was trained;
            methods must not be attached yet. Names of layers may lack or have a prefix that the folder's do not.
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``; of a kind in ``KINDS``. Biases and
            modules of the base that it trains are tuned parameters afterwards.

    Returns:
        The folder's config.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: One line that names the folder, and the setting or the layer that does not fit; the model is
            left as it was, without methods if it had none.
    """
    target = unwrap(model)
    # Read and checked in full before the model is touched.
    read = read_folder(folder)
    backbone = backbone_in(target)
    if len(getattr(backbone, 'petl', ())):
        raise ValueError(f'{folder}: the model already holds {", ".join(backbone.petl)}; load a folder of peft onto a '
                         'model without methods')
    with as_it_was(target):
        if not hasattr(backbone, 'petl'):
            attach(backbone)
        opened = open_peft(target, folder, read)
        backbone.petl.tune = tuple(dict.fromkeys((*backbone.petl.tune, *opened.tuned)))
        add_methods(backbone, opened.methods)
    parameters = {**dict(backbone.named_parameters()), **dict(backbone.named_buffers())}
    state = target.state_dict()
    with torch.no_grad():
        for name, value in {**opened.values, **opened.tuned}.items():
            parameters[name].copy_(value)
        for name, value in opened.head.items():
            state[name].copy_(value)
    print_log(f'peft folder {folder}: {len(read[1])} tensors of {opened.config["peft_type"]}', 'current')
    return opened.config


def open_peft(model: nn.Module, folder: str, read: Optional[Tuple[Dict[str, Any], Dict[str, Tensor]]] = None,
              any_classes: bool = False) -> Opened:
    """What a folder brings to a model; nothing is changed.

    Args:
        model: Model with an attached backbone.
        folder: Folder of peft.
        read: What :func:`read_folder` gave for it.
        any_classes: Let heads outside the backbone have another number of classes than the model's.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: In one line, what does not fit.
    """
    config, tensors = read or read_folder(folder)
    backbone, slots = find_backbone(model)[0], layer_slots(model)
    parts, tuned, head, paths = _by_layer(model, folder, config, tensors, slots, any_classes)
    configs, values = KINDS[config['peft_type']].read(folder, _of_layers(folder, config, paths), parts, slots)
    stored, specs = sum(t.numel() for t in tensors.values()), [block.spec for block in backbone.petl.blocks]
    # Three times what is stored: fused layers are read once per op.
    configs = methods_from_data(configs, specs, folder, 3 * stored)
    with torch.device('meta'):
        shapes = {f'petl.{name}.{key}': p.shape for name, method in build_methods(configs, specs).items()
                  for key, p in (*method.named_parameters(), *method.named_buffers())}
    for name, value in values.items():
        # copy_ would spread a narrower one out.
        if value.shape != shapes[name]:
            raise ValueError(f'{folder}: {name.removeprefix("petl.")} has the shape {tuple(value.shape)}, this model '
                             f'needs {tuple(shapes[name])}')
    return Opened(config, configs, values, tuned, head)


def read_folder(folder: str) -> Tuple[Dict[str, Any], Dict[str, Tensor]]:
    """Config and tensors of a peft folder, the config checked.

    Raises:
        FileNotFoundError: If a file is missing.
        WeightFileError: If the config cannot be read, is of another kind, or has a setting that is not known here.
    """
    folder = as_path(folder, 'folder')
    path = os.path.join(folder, CONFIG)
    if not os.path.isfile(path):
        inside = sorted(glob.glob(os.path.join(glob.escape(folder), '*', CONFIG)))
        meant = f', such as {os.path.dirname(inside[0])}' if inside else ''
        raise FileNotFoundError(f'{folder} has no {CONFIG}: name a folder of peft{meant}, which holds it and {TENSORS}')
    config = read_json(path, MAX_CONFIG)
    if not isinstance(config, dict):
        raise WeightFileError(path, 'not a table', 'save the adapter again')
    kind = config.get('peft_type')
    if kind not in KINDS:
        prompts = ', which holds prompts of language models' if kind in _PROMPTS else ''
        raise WeightFileError(path, f'peft_type {kind!r:.40} is not read here{prompts}', f'known: {", ".join(KINDS)}')
    for key, value in config.items():
        # An unknown setting that is off means nothing; one that is on may mean anything.
        if key not in _FREE | KINDS[kind].known and value not in (None, False, '', [], {}):
            raise WeightFileError(path, f'{key}={value!r:.60} is not read here', 'merge it with peft, or train without')
    check_settings(folder, config)
    bias = config.get('bias', 'none')
    if bias not in ('none', 'all') and not str(bias).endswith('_only'):
        raise WeightFileError(path, f'bias={bias!r:.40} is not read here', "'none', 'all' and '..._only' are")
    if config.get('init_lora_weights', True) not in _PLAIN_INIT:
        raise WeightFileError(path, f"init_lora_weights={config['init_lora_weights']!r:.40} changes the base",
                              'let peft convert the adapter to a plain LoRA first')
    return {**KINDS[kind].defaults, **config}, _tensors(tensor_file(os.path.expanduser(folder)))


def tensor_file(folder: str) -> str:
    """The file of a folder that has its tensors: the pickle that older versions wrote where there is no other."""
    path, pickled = os.path.join(folder, TENSORS), os.path.join(folder, PICKLED)
    return pickled if os.path.isfile(pickled) and not os.path.isfile(path) else path


def _tensors(path: str) -> Dict[str, Tensor]:
    if os.path.basename(path) == PICKLED:
        state = load_file(path)['state_dict']
        return {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path} is not there: save the adapter again')
    if file_kind(path) != 'safetensors':
        raise WeightFileError(path, 'not a safetensors file', 'save the adapter again')
    entries, _ = read_safetensors_header(path, os.path.getsize(path))
    return dict(read_tensors(path, list(entries)))


def _by_layer(
    model: nn.Module, folder: str, config: Mapping[str, Any], tensors: Mapping[str, Tensor],
    slots: Mapping[str, List[Slot]], any_classes: bool
) -> Tuple[Dict[str, Dict[str, Tensor]], Dict[str, Tensor], Dict[str, Tensor], Dict[str, str]]:
    """Tensors by layer of the model and part; those of base parameters by name in the backbone; those of the head by
    key of the model; the folder's name of each layer."""
    parts: Dict[str, Dict[str, Tensor]] = {}
    paths: Dict[str, str] = {}
    tuned: Dict[str, Tensor] = {}
    head: Dict[str, Tensor] = {}
    kind = KINDS[config['peft_type']]
    of_layer = re.compile(r'base_model\.model\.(?P<path>.+)\.(?P<part>' + '|'.join(map(re.escape, kind.parts)) + ')')
    whole = WholeParameters(model, folder, any_classes)
    matches = {key: of_layer.fullmatch(key) if kind.parts else None for key in tensors}
    names = {key: match['path'] if match else '' if kind.parts else norm_of(key) for key, match in matches.items()}
    beside = _left_out(folder, config, {name for name in names.values() if name})
    for key, tensor in tensors.items():
        match = matches[key]
        shared = _SHARED.fullmatch(key) if kind.methods == ('VeRA', ) else None
        if shared is not None:
            parts.setdefault(peft_factors.SHARED, {})[shared['part']] = tensor
            continue
        if names[key] in beside:
            continue
        if match is None:
            whole.put(key, tensor, tuned, head)
            continue
        layer = _layer_named(whole.backbone, match['path'], slots)
        if layer is None:
            raise ValueError(f'{folder}: {type(model).__name__} has no adapted layer {match["path"]!r:.120}; it has '
                             f'{", ".join(list(slots)[:3])} ...: keep to these in target_modules, or merge with peft')
        check_called(model, layer, slots[layer], folder)
        parts.setdefault(layer, {})[match['part']] = tensor
        paths[layer] = match['path']
    if kind.parts and not parts:
        raise ValueError(f'{folder}: no factor among the tensors')
    whole.check_saved(config, {*head, *(f'{whole.prefix}{name}' for name in tuned)})
    _say_missing(folder, config, paths, slots)
    return parts, tuned, head, paths


def _of_layers(folder: str, config: Mapping[str, Any], paths: Mapping[str, str]) -> Mapping[str, Any]:
    """The config with patterns that name layers as the model does: a folder of another version may call them
    otherwise, and its patterns do as its tensors."""
    changed = {}
    for key in ('rank_pattern', 'alpha_pattern'):
        # Of an AdaLoRA the patterns of ranks name a tensor.
        end = '.lora_E' if key == 'rank_pattern' and config['peft_type'] == 'ADALORA' else ''
        found = by_layer(folder, config, key, [path + end for path in paths.values()])
        changed[key] = {layer + end: found[path + end] for layer, path in paths.items() if path + end in found}
    return {**config, **changed}


def _say_missing(folder: str, config: Mapping[str, Any], paths: Mapping[str, str], slots: Collection[str]) -> None:
    """Say that layers are named which have no tensors, where the folder calls layers as the model does."""
    if not config.get('target_modules') or any(layer != path for layer, path in paths.items()):
        return
    lacking = sorted(set(slots) - set(left_out(config, slots, doubtful=True)) - set(paths))
    if lacking and paths:
        print_log(f'{folder}: target_modules={config["target_modules"]!r:.80} names {len(lacking)} layers that have no '
                  f'tensors, such as {lacking[0]!r:.80}; they stay as they are: save the adapter again if it had them',
                  'current', logging.WARNING)


def _left_out(folder: str, config: Mapping[str, Any], paths: Collection[str]) -> Set[str]:
    """Layers whose tensors peft does not read, as a setting leaves them out; said in a line.

    Raises:
        ValueError: If that are all layers.
    """
    beside, number = left_out(config, paths), len(paths)
    for key in dict.fromkeys(beside.values()):
        names = [name for name in beside if beside[name] == key]
        said = f'{key}={config.get(key)!r:.80} leaves out {len(names)} of {number} layers that have tensors, such as '
        if len(beside) == number:
            raise ValueError(f'{os.path.join(folder, CONFIG)}: {said}{min(names)!r:.80}, and none is left: mend {key}')
        print_log(f'{folder}: {said}{min(names)!r:.80}; mmpetl does not read them, as peft does not: mend {key} if '
                  'they are meant', 'current', logging.WARNING)
    return set(beside)


def _layer_named(backbone: nn.Module, path: str, slots: Mapping[str, List[Slot]]) -> Optional[str]:
    found = names_of(backbone, f'{path}.weight', [f'{layer}.weight' for layer in slots])
    return found[0].removesuffix('.weight') if found else None


# -- writing ----------------------------------------------------------------------------------------------------------


def _check_layers(backbone: nn.Module, slots: Mapping[str, List[Slot]]) -> None:
    """Refuse ops that are held by no linear layer.

    Raises:
        ValueError: Names the op and the block.
    """
    held = {(slot.block, slot.op) for found in slots.values() for slot in found}
    for i, block in enumerate(backbone.petl.blocks):
        adapted = {op for m in backbone.petl.values() if i in m.layers for op in m.ops if op in block.spec.ops}
        for op in sorted(adapted):
            if (i, op) not in held:
                raise ValueError(f'{type(backbone).__name__}: {op} of block {i} is no layer, so peft has no effect '
                                 'there')


def outermost(names: Collection[str]) -> List[str]:
    """Names of modules without those inside another one of them: peft copies a module with all that is in it."""
    return sorted(name for name in names if not any(name.startswith(f'{other}.') for other in names))


def save_peft(model: nn.Module, folder: str, prefix: str = '') -> List[str]:
    """Write the methods of a model as a peft folder for the same model without mmpetl.

    Args:
        model: Model with methods of one kind in ``KINDS`` attached, or with tuned parameters of the base alone.
        folder: Gets ``adapter_config.json`` and ``adapter_model.safetensors``; the head, where it trains, and modules
            of the base that do are among peft's ``modules_to_save``, biases of adapted layers under ``bias``.
        prefix: What stands before this model's names in the model that is to open the folder: of a ``ViTModel`` 'vit.'
            in a ``ViTForImageClassification``.

    Returns:
        Lines that say what was written.

    Raises:
        ValueError: If another method is there or a tuned parameter that peft cannot save, or peft would have no effect.
    """
    folder, target = as_path(folder, 'folder'), unwrap(model)
    backbone, _ = find_backbone(target)
    kinds = {type(m).__name__ for m in backbone.petl.values()}
    if not kinds and backbone.petl.tune:
        kind: Optional[Kind] = KINDS[NORMS]
    else:
        kind = next((k for k in KINDS.values() if len(kinds) == 1 and kinds <= set(k.methods)), None)
    if kind is None:
        known = ', '.join(name for k in KINDS.values() for name in k.methods)
        raise ValueError(f'a folder of peft holds one of {known}; this model holds '
                         f'{", ".join(sorted(kinds)) or "no method"}')
    base = getattr(backbone, 'base_name', None) or getattr(getattr(target, 'config', None), '_name_or_path', None)
    title = type(target).__name__
    for name in reversed([part for part in prefix.split('.') if part]):
        inside, target = target, nn.Module()
        target.add_module(name, inside)
    slots = layer_slots(target)
    _check_layers(backbone, slots)
    state, config = kind.write(target, slots, base or None)
    # Layers that upstream fuses in another way have no place in a folder of peft.
    if kind.parts and not state:
        raise ValueError(f'no linear layer of {title} holds an adapted op, so peft has no effect')
    state = {f'base_model.{"" if _SHARED.fullmatch(f"base_model.{key}") else "model."}{key}': value
             for key, value in state.items()}
    config = tuned_state(target, state, config, base or None)
    heads = head_keys(target)
    if heads:
        owners = {key.rpartition('.')[0] for key in heads} - {''}  # parameters of the model itself need no module
        config['modules_to_save'] = outermost(owners | set(config['modules_to_save'] or ()))
        values = target.state_dict()
        state.update({f'base_model.model.{key}': values[key] for key in heads})
    saved, layers = config['modules_to_save'] or (), set(config['target_modules'] or ()) if kind.parts else set()
    state.update({f'base_model.model.{key}': v for key, v in taken_too(target, saved, layers).items()})
    write_peft(folder, state, config)
    return [f'{len(state)} tensors of {next(iter(kinds), NORMS)} for {title}'
            + (f'; base {base!r}' if base else '')]
