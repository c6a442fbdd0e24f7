# SPDX-License-Identifier: Apache-2.0
"""Which linear layers of a model hold which ops of its blocks, and what all kinds of peft folders share."""

import os
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from torch import Tensor, nn

from ..tuning import find_backbone, unwrap
from ..weights.errors import WeightFileError
from .peft_names import CONFIG


class Slot(NamedTuple):
    """Where an op's weight lies: block, op, first row and number of rows in the layer's weight, and its columns."""
    block: int
    op: str
    start: int
    rows: int
    columns: int


def layer_slots(model: nn.Module) -> Dict[str, List[Slot]]:
    """Linear layers of a model by name, with the ops that they hold, from the first row on.

    Args:
        model: Model with an attached backbone.
    """
    backbone, _ = find_backbone(model)
    # By memory: q, k and v are views of one fused weight, and no name says so.
    layers = {id_of(m.weight): (name, m) for name, m in unwrap(model).named_modules() if isinstance(m, nn.Linear)}
    found: Dict[str, List[Slot]] = {}
    for i, block in enumerate(backbone.petl.blocks):
        for op in block.spec.ops:
            weight = block.op_parameters(op)[0]
            if id_of(weight) in layers:
                name, layer = layers[id_of(weight)]
                # Rows are contiguous, so the distance in memory over the row length is the first row.
                start = (weight.storage_offset() - layer.weight.storage_offset()) // layer.in_features
                found.setdefault(name, []).append(Slot(i, op, start, len(weight), layer.in_features))
    # By row: a fused gate stands before or behind fc1.
    return {name: sorted(held, key=lambda slot: slot.start) for name, held in found.items()}


def id_of(weight: Tensor) -> int:
    """The memory that a weight (Cout, Cin), or a view of some of its rows, lies in."""
    return weight.untyped_storage()._cdata


def check_called(model: nn.Module, layer: str, slots: List[Slot], source: str) -> None:
    """Raises:
        ValueError: If upstream never calls the layer, so that peft's replacement of it has no effect.
    """
    backbone, _ = find_backbone(model)
    # The attention that holds it, which in a Swin stands inside another module. Not by get_submodule: methods of sited
    # classes hide modules of the same name.
    attn = unwrap(model)
    for name in layer.split('.')[:-1]:
        attn = attn._modules[name]
    if not getattr(attn, 'calls_qkv' if len(slots) == 3 else 'calls_proj', True):
        raise ValueError(f'{source}: {layer}: {type(backbone).__name__} multiplies by its weight itself and never '
                         'calls the layer that peft replaces, so peft has no effect there')


#: A layer with the ops that it holds, and of each adapted one its slot and its method.
Held = Tuple[str, List[Slot], List[Tuple[Slot, nn.Module]]]
#: Tensors by layer and part.
Parts = Mapping[str, Mapping[str, Tensor]]
Slots = Mapping[str, List[Slot]]


def held_methods(model: nn.Module, slots: Slots) -> Iterator[Held]:
    """All adapted layers.

    Raises:
        ValueError: If peft would have no effect on one.
    """
    backbone, _ = find_backbone(model)
    for layer, held in slots.items():
        # One layer may hold several ops, and several methods may act on one op.
        parts = [(slot, method) for slot in held for method in backbone.petl.values()
                 if slot.block in method.layers and slot.op in method.ops]
        if parts:
            check_called(model, layer, held, 'peft')
            yield layer, held, parts


def own(method: nn.Module, slot: Slot) -> Any:
    """The parameters of one op of a method."""
    return method.blocks[str(slot.block)][slot.op]


def dropout_of(folder: str, config: Mapping[str, Any], key: str = 'lora_dropout') -> float:
    """Dropout that a config states; 0 without.

    Raises:
        WeightFileError: If it is no share.
    """
    rate = config.get(key) or 0.
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise WeightFileError(os.path.join(folder, CONFIG), f'{key}={rate!r:.40} is no share',
                              'give a number from 0 to below 1')
    return float(rate)


def drop_rate_of(model: nn.Module) -> float:
    """The largest rate of dropout of the methods."""
    return max(float(getattr(m.drop, 'p', 0.)) for m in find_backbone(model)[0].petl.values())


def only(found: Mapping[str, Any], what: str) -> Any:
    """The one value of all layers.

    Raises:
        ValueError: If layers differ; a folder of peft has one setting for all.
    """
    # A set in the order of the layers, for the message.
    values = dict.fromkeys(found.values())
    if len(values) != 1:
        raise ValueError(f'a folder of peft has one {what} for all layers; here are {", ".join(map(str, values))}')
    return next(iter(values))


def of_shape(folder: str, layer: str, parts: Mapping[str, Tensor], **shapes: Tuple[Optional[int], ...]) -> None:
    """Check the shapes of a layer's tensors, None for any size.

    Raises:
        ValueError: If one is missing or has another shape.
    """
    for name, shape in shapes.items():
        # Keyword arguments cannot hold a dot.
        name = name.replace('__', '.')
        got = tuple(parts[name].shape) if name in parts else None
        if got is None or len(got) != len(shape) or any(b is not None and a != b for a, b in zip(got, shape)):
            wanted = ' x '.join('any' if n is None else str(n) for n in shape)
            raise ValueError(f'{folder}: {name} of {layer} has the shape {got}, the layer needs {wanted}')


def rows_of(held: List[Slot]) -> int:
    """Outputs of a layer."""
    return sum(slot.rows for slot in held)


def stated(config: Mapping[str, Any], key: str, layer: str, default: Any) -> Any:
    """What ``rank_pattern`` or ``alpha_pattern`` says of one layer, by layers already (see :mod:`.peft_names`)."""
    return (config.get(key) or {}).get(layer, default)


def check_rank(folder: str, config: Mapping[str, Any], layer: str, rank: int) -> None:
    """Compare the rank that a config states with that of a layer's tensors: the scale is alpha / rank.

    Raises:
        WeightFileError: If they differ, as peft refuses them.
    """
    wanted = stated(config, 'rank_pattern', layer, config.get('r'))
    if wanted is not None and wanted != rank:
        raise WeightFileError(os.path.join(folder, CONFIG), f'states rank {wanted!r:.40} for {layer}, whose tensors '
                              f'have rank {rank}', f'set r={rank}, or name the layer in rank_pattern')


def alpha_of(folder: str, config: Mapping[str, Any], layer: str, rank: int, key: str = 'lora_alpha') -> float:
    """Numerator of the scale alpha / rank of one layer.

    Raises:
        WeightFileError: If it is no number.
    """
    alpha = stated(config, 'alpha_pattern', layer, config.get(key, rank))
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)):
        raise WeightFileError(os.path.join(folder, CONFIG), f'{key} {alpha!r:.40} is not a number',
                              'save the adapter again')
    # rsLoRA divides by the root: alpha / sqrt(r) = (alpha sqrt(r)) / r.
    return float(alpha * rank**0.5 if config.get('use_rslora') else alpha)


def plain_config(kind: str, base: Optional[str], layers: Mapping[str, Any], **settings: Any) -> Dict[str, Any]:
    """A config of peft with what all kinds have."""
    return dict(peft_type=kind, task_type=None, base_model_name_or_path=base, inference_mode=True,
                target_modules=sorted(layers), modules_to_save=None, **settings)


def ranks_and_alphas(ranks: Mapping[str, int]) -> Dict[str, Any]:
    """Settings r, alpha and their patterns for layers whose scale alpha / rank is 1."""
    rank = max(ranks.values())
    # Only exceptions go into patterns.
    other = {layer: r for layer, r in ranks.items() if r != rank}
    return dict(r=rank, alpha=rank, rank_pattern=other, alpha_pattern=dict(other))
