"""Folders of peft: LoRA and IA3 onto any trunk whose linear layers peft sees, and back, with equal outputs.

A folder names layers of a model; the waist names ops of blocks. Which layer holds which op is read off the model
itself: the layer whose weight is the op's, or holds it among its rows. From a folder nothing is imported or evaluated:
its layers are looked up among those of the model, and its settings among those that are known here.
"""

import os
import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from ..backbones.attach import add_methods, attach
from ..backbones.family import trunk_in
from ..backbones.from_data import methods_from_data
from ..tuning import find_backbone, head_keys, unwrap
from ..weights.errors import WeightFileError
from ..weights.export_peft import peft_config, write_peft
from ..weights.guards import read_safetensors_header
from ..weights.kinds import file_kind, read_tensors
from ..weights.reading import read_json

CONFIG, TENSORS = 'adapter_config.json', 'adapter_model.safetensors'
#: Settings that change nothing about what the tensors mean.
_FREE = {
    'alpha_pattern', 'auto_mapping', 'base_model_name_or_path', 'bias', 'exclude_modules', 'feedforward_modules',
    'inference_mode', 'init_ia3_weights', 'init_lora_weights', 'layers_pattern', 'layers_to_transform', 'lora_alpha',
    'lora_dropout', 'megatron_core', 'modules_to_save', 'peft_type', 'peft_version', 'qalora_group_size', 'r',
    'rank_pattern', 'revision', 'target_modules', 'task_type', 'use_rslora'
}
#: Initialisations that leave the base as it was.
_PLAIN_INIT = (True, False, None, 'gaussian', 'orthogonal', 'eva')
_KEY = re.compile(r'base_model\.model\.(?P<path>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|ia3_l)')
MAX_CONFIG = 1 << 20


class Slot(NamedTuple):
    """Where an op's weight lies: block, op, first row and number of rows in the layer's weight."""
    block: int
    op: str
    start: int
    rows: int


def layer_slots(model: nn.Module) -> Dict[str, List[Slot]]:
    """Linear layers of a model by name, with the ops that they hold.

    Args:
        model: Model with an attached backbone.
    """
    backbone, _ = find_backbone(model)
    layers = {id_of(m.weight): (name, m) for name, m in unwrap(model).named_modules() if isinstance(m, nn.Linear)}
    found: Dict[str, List[Slot]] = {}
    for i, block in enumerate(backbone.petl.blocks):
        for op in block.spec.ops:
            weight = block.op_parameters(op)[0]
            if id_of(weight) in layers:
                name, layer = layers[id_of(weight)]
                start = (weight.storage_offset() - layer.weight.storage_offset()) // layer.in_features
                found.setdefault(name, []).append(Slot(i, op, start, len(weight)))
    return found


def id_of(weight: Tensor) -> int:
    """The memory that a weight (Cout, Cin), or a view of some of its rows, lies in."""
    return weight.untyped_storage()._cdata


def _check_called(model: nn.Module, layer: str, slots: List[Slot], source: str) -> None:
    backbone, _ = find_backbone(model)
    attn = getattr(backbone.petl.blocks[slots[0].block], 'attn', None)
    if len(slots) == 3 and not getattr(attn, 'calls_qkv', True):
        raise ValueError(f'{source}: {layer}: {type(backbone).__name__} multiplies by its weight itself and never '
                         'calls the layer that peft replaces, so peft has no effect there')


# -- reading ----------------------------------------------------------------------------------------------------------


def load_peft(model: nn.Module, folder: str) -> Dict[str, Any]:
    """Put a peft folder onto a model, in place, with the outputs that peft gives.

    Args:
        model: A supported backbone or a model that holds one, with the weights on which the adapter was trained;
            methods must not be attached yet. Names of layers may lack or have a prefix that the folder's do not.
        folder: Holds ``adapter_config.json`` and ``adapter_model.safetensors``; LoRA or IA3.

    Returns:
        The folder's config.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: One line that names the folder, and the setting or the layer that does not fit; the model keeps its
            weights.
    """
    config, tensors = read_folder(folder)
    target = unwrap(model)
    trunk = trunk_in(target)
    if not hasattr(trunk, 'petl'):
        attach(trunk)
    if len(trunk.petl):
        raise ValueError(f'{folder}: the model already holds {", ".join(trunk.petl)}; load a folder of peft onto a '
                         'model without methods')
    slots = layer_slots(target)
    parts, outside = _by_layer(target, folder, tensors, slots)
    make = _lora_methods if config['peft_type'] == 'LORA' else _ia3_methods
    configs, values = make(folder, config, parts, slots)
    stored = sum(t.numel() for t in tensors.values())
    add_methods(trunk, methods_from_data(configs, [b.spec for b in trunk.petl.blocks], folder, 3 * stored))
    parameters = {**dict(trunk.named_parameters()), **{f'outside.{k}': v for k, v in target.state_dict().items()}}
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
    path = os.path.join(os.path.expanduser(folder), CONFIG)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{folder} has no {CONFIG}: a folder of peft holds it and {TENSORS}')
    config = read_json(path, MAX_CONFIG)
    if not isinstance(config, dict):
        raise WeightFileError(path, 'not a table', 'save the adapter again')
    kind = config.get('peft_type')
    if kind not in ('LORA', 'IA3'):
        raise WeightFileError(path, f'peft_type {kind!r:.40} is not read here', 'known: LORA, IA3')
    for key, value in config.items():
        if key not in _FREE and value not in (None, False, '', [], {}):
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


def _by_layer(model: nn.Module, folder: str, tensors: Mapping[str, Tensor],
              slots: Mapping[str, List[Slot]]) -> Tuple[Dict[str, Dict[str, Tensor]], Dict[str, Tensor]]:
    """Tensors by layer of the model and part, and those that lie outside the trunk, by key of the model."""
    parts: Dict[str, Dict[str, Tensor]] = {}
    outside: Dict[str, Tensor] = {}
    state = model.state_dict()
    heads = set(head_keys(model))
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            name = key.removeprefix('base_model.model.')
            if name not in heads or state[name].shape != tensor.shape:
                raise ValueError(f'{folder}: {key} is neither a factor nor a parameter of the head of '
                                 f'{type(model).__name__}')
            outside[name] = tensor
            continue
        layer = _layer_named(model, match['path'], slots)
        if layer is None:
            raise ValueError(f'{folder}: {type(model).__name__} has no adapted layer {match["path"]!r:.120}; it has '
                             f'{", ".join(list(slots)[:3])} ...')
        _check_called(model, layer, slots[layer], folder)
        parts.setdefault(layer, {})[match['part']] = tensor
    if not parts:
        raise ValueError(f'{folder}: no factor among the tensors')
    return parts, outside


def _layer_named(model: nn.Module, path: str, slots: Mapping[str, List[Slot]]) -> Optional[str]:
    backbone, _ = find_backbone(model)
    own_names = backbone.petl.family.own_names
    names = [path]
    if own_names is not None:
        names += [next(iter(own_names(backbone, {f'{path}.weight': torch.empty(0)}))).removesuffix('.weight')]
    for name in names:
        if name in slots:
            return name
    fitting = [layer for layer in slots for name in names
               if f'.{name}'.endswith(f'.{layer}') or f'.{layer}'.endswith(f'.{name}')]
    return fitting[0] if len(set(fitting)) == 1 else None


def _alpha(folder: str, config: Mapping[str, Any], layer: str, rank: int) -> float:
    """Numerator of the scale alpha / rank of one layer."""
    alpha = config.get('lora_alpha', rank)
    for pattern, value in (config.get('alpha_pattern') or {}).items():
        if re.search(r'[^\w.]', pattern):
            raise WeightFileError(os.path.join(folder, CONFIG), f'alpha_pattern {pattern!r:.60} is not a plain name',
                                  'name the layers')
        if f'.{layer}'.endswith(f'.{pattern}') or f'.{pattern}'.endswith(f'.{layer}'):
            alpha = value
            break
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise WeightFileError(os.path.join(folder, CONFIG), f'lora_alpha {alpha!r:.40} is not a number',
                              'save the adapter again')
    return float(alpha * rank**0.5 if config.get('use_rslora') else alpha)


def _lora_methods(folder: str, config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Tensor]],
                  slots: Mapping[str, List[Slot]]) -> Tuple[List[Dict[str, Any]], Dict[str, Tensor]]:
    """One LoRA per op (ranks may differ between ops of a block), and the values of their factors.

    A layer that holds several ops has one factor A for all of them: each op gets it, and its own rows of B.
    """
    found: Dict[str, Dict[int, Tuple[int, float]]] = {}
    values: Dict[str, Tensor] = {}
    for layer, factors in parts.items():
        if set(factors) != {'lora_A.weight', 'lora_B.weight'}:
            raise ValueError(f'{folder}: {layer} has not both factors of a LoRA')
        down, up = factors['lora_A.weight'], factors['lora_B.weight']
        rows = sum(slot.rows for slot in slots[layer])
        if down.dim() != 2 or up.shape != (rows, len(down)):
            raise ValueError(f'{folder}: the factors of {layer} have shapes {tuple(down.shape)} and {tuple(up.shape)}, '
                             f'the layer has {rows} outputs')
        for slot in slots[layer]:
            found.setdefault(slot.op, {})[slot.block] = len(down), _alpha(folder, config, layer, len(down))
            at = f'petl.lora_{slot.op}.blocks.{slot.block}.{slot.op}'
            values[f'{at}.down'], values[f'{at}.up'] = down, up[slot.start:slot.start + slot.rows]
    drop_rate = config.get('lora_dropout') or 0.
    configs = []
    for op, blocks in found.items():
        layers = sorted(blocks)
        configs.append(dict(
            type='LoRA', name=f'lora_{op}', ops=[op], layers=layers, rank=[blocks[i][0] for i in layers],
            alpha=[blocks[i][1] for i in layers], drop_rate=float(drop_rate)))
    return configs, values


def _ia3_methods(folder: str, config: Mapping[str, Any], parts: Mapping[str, Mapping[str, Tensor]],
                 slots: Mapping[str, List[Slot]]) -> Tuple[List[Dict[str, Any]], Dict[str, Tensor]]:
    """One IA3 per op and side of it, and the values of its factors."""
    found: Dict[Tuple[str, str], List[int]] = {}
    values: Dict[str, Tensor] = {}
    for layer, factors in parts.items():
        scale = factors['ia3_l']
        inputs = scale.dim() == 2 and scale.shape[0] == 1
        for slot in slots[layer]:
            part = scale.flatten() if inputs else scale.flatten()[slot.start:slot.start + slot.rows]
            name = f'ia3_{slot.op}_{"in" if inputs else "out"}'
            found.setdefault((slot.op, 'input' if inputs else 'output'), []).append(slot.block)
            values[f'petl.{name}.blocks.{slot.block}.{slot.op}'] = part
    configs = [dict(type='IA3', name=f'ia3_{op}_{"in" if at == "input" else "out"}', ops=[op], at=at, layers=sorted(b))
               for (op, at), b in found.items()]
    return configs, values


# -- writing ----------------------------------------------------------------------------------------------------------


def save_peft(model: nn.Module, folder: str) -> List[str]:
    """Write the LoRA or IA3 of a model as a peft folder for the same model without mmpetl.

    Args:
        model: Model with LoRA (or IA3) attached, nothing else.
        folder: Gets ``adapter_config.json`` and ``adapter_model.safetensors``; the head, where it trains, is among
            peft's ``modules_to_save``.

    Returns:
        Lines that say what was written.

    Raises:
        ValueError: If another method or a tuned trunk parameter is there, or peft would have no effect.
    """
    target = unwrap(model)
    backbone, prefix = find_backbone(target)
    kinds = {type(m).__name__ for m in backbone.petl.values()}
    if len(kinds) != 1 or not kinds <= {'LoRA', 'IA3'}:
        raise ValueError(f'peft holds one LoRA or IA3; this model holds {", ".join(sorted(kinds)) or "no method"}')
    if backbone.petl.tune:
        raise ValueError(f'the adapter also changes trunk parameters ({", ".join(backbone.petl.tune[:3])}), which a '
                         'peft folder cannot hold')
    base = getattr(backbone, 'base_name', None) or getattr(getattr(target, 'config', None), '_name_or_path', None)
    slots = layer_slots(target)
    write = _lora_state if kinds == {'LoRA'} else _ia3_state
    state, config = write(target, slots, base or None)
    state = {f'base_model.model.{key}': value for key, value in state.items()}
    heads = head_keys(target)
    if heads:
        config['modules_to_save'] = sorted({key.rsplit('.', 1)[0] for key in heads})
        values = target.state_dict()
        state.update({f'base_model.model.{key}': values[key] for key in heads})
    write_peft(folder, state, config)
    return [f'{len(state)} tensors of {kinds.pop()} for {type(target).__name__}; base {base!r}']


def _lora_state(model: nn.Module, slots: Mapping[str, List[Slot]],
                base: Optional[str]) -> Tuple[Dict[str, Tensor], Dict[str, Any]]:
    backbone, _ = find_backbone(model)
    state: Dict[str, Tensor] = {}
    ranks: Dict[str, int] = {}
    alphas: Dict[str, float] = {}
    drops = {float(getattr(m.drop, 'p', 0.)) for m in backbone.petl.values()}
    for layer, held in slots.items():
        parts = [(slot, method.scales[slot.block], method.blocks[str(slot.block)][slot.op]) for slot in held
                 for method in backbone.petl.values() if slot.block in method.layers and slot.op in method.ops]
        if not parts:
            continue
        _check_called(model, layer, held, 'peft')
        down = torch.cat([factors.down.detach() for _, _, factors in parts])
        up = down.new_zeros(sum(slot.rows for slot in held), len(down))
        column = 0
        for slot, scale, factors in parts:
            # Each part's own scale goes into its rows, so that one scale of 1 holds for the layer.
            rank = len(factors.down)
            up[slot.start:slot.start + slot.rows, column:column + rank] = scale * factors.up.detach()
            column += rank
        state[f'{layer}.lora_A.weight'], state[f'{layer}.lora_B.weight'] = down, up
        ranks[layer], alphas[layer] = len(down), float(len(down))
    return state, peft_config(ranks, alphas, max(drops), base)


def _ia3_state(model: nn.Module, slots: Mapping[str, List[Slot]],
               base: Optional[str]) -> Tuple[Dict[str, Tensor], Dict[str, Any]]:
    backbone, _ = find_backbone(model)
    state: Dict[str, Tensor] = {}
    inputs: List[str] = []
    for layer, held in slots.items():
        parts = {slot: method for slot in held for method in backbone.petl.values()
                 if slot.block in method.layers and slot.op in method.ops}
        if not parts:
            continue
        _check_called(model, layer, held, 'peft')
        first = next(iter(parts.values()))
        factors = {slot: method.blocks[str(slot.block)][slot.op].detach() for slot, method in parts.items()}
        if first.at == 'input':
            if len(held) > 1:
                raise ValueError(f'{layer} holds several ops with one input; peft scales it for all of them at once')
            inputs.append(layer)
            state[f'{layer}.ia3_l'] = factors[held[0]][None]
            continue
        scale = next(iter(factors.values())).new_ones(sum(slot.rows for slot in held), 1)
        for slot, factor in factors.items():
            scale[slot.start:slot.start + slot.rows, 0] = factor
        state[f'{layer}.ia3_l'] = scale
    layers = sorted(key.rsplit('.', 1)[0] for key in state)
    return state, dict(
        peft_type='IA3', task_type=None, base_model_name_or_path=base, inference_mode=True, target_modules=layers,
        feedforward_modules=sorted(inputs), fan_in_fan_out=False, modules_to_save=None, init_ia3_weights=True)
