# SPDX-License-Identifier: Apache-2.0
"""Tensors of LoRA, DoRA, AdaLoRA, LoHa and LoKr in peft's form, to and from methods.

A layer that holds several ops (one product for q, k and v) has factors for all of them: each op gets the shared ones
and its own rows of the others; back, the factors of the ops stand beside each other, with zeros between.
"""

from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from ..tuning import find_backbone
from ..weights.export_peft import peft_config
from .peft_layers import (
    Parts,
    Slot,
    Slots,
    alpha_of,
    check_rank,
    drop_rate_of,
    dropout_of,
    held_methods,
    of_shape,
    own,
    plain_config,
    ranks_and_alphas,
    rows_of,
    stated,
)

Read = Tuple[List[Dict[str, Any]], Dict[str, Tensor]]
Written = Tuple[Dict[str, Tensor], Dict[str, Any]]
MAGNITUDE = 'lora_magnitude_vector'


def _configs(kind: str, found: Mapping[str, Mapping[int, Dict[str, Any]]], drop_rate: float) -> List[Dict[str, Any]]:
    """One method per op, because ranks may differ between the ops of a block; options as lists over the blocks."""
    configs = []
    for op, blocks in found.items():
        # Options as lists follow the order of the adapted blocks.
        layers = sorted(blocks)
        options = {key: [blocks[i][key] for i in layers] for key in blocks[layers[0]]}
        configs.append(dict(
            type=kind, name=f'{kind.lower()}_{op}', ops=[op], layers=layers, drop_rate=drop_rate, **options))
    return configs


def _at(kind: str, slot: Slot) -> str:
    return f'petl.{kind.lower()}_{slot.op}.blocks.{slot.block}.{slot.op}'


def read_lora(folder: str, config: Mapping[str, Any], parts: Parts, slots: Slots) -> Read:
    """LoRA, or DoRA where magnitudes are there."""
    kind = 'DoRA' if config.get('use_dora') else 'LoRA'
    found: Dict[str, Dict[int, Dict[str, Any]]] = {}
    values: Dict[str, Tensor] = {}
    for layer, factors in parts.items():
        wanted = {'lora_A.weight', 'lora_B.weight'} | ({MAGNITUDE} if kind == 'DoRA' else set())
        if set(factors) != wanted:
            raise ValueError(f'{folder}: {layer} has not all factors of a {kind}: {", ".join(sorted(wanted))}')
        down, up = factors['lora_A.weight'], factors['lora_B.weight']
        rows = rows_of(slots[layer])
        if down.dim() != 2 or up.shape != (rows, len(down)):
            raise ValueError(f'{folder}: the factors of {layer} have shapes {tuple(down.shape)} and {tuple(up.shape)}, '
                             f'the layer has {rows} outputs')
        check_rank(folder, config, layer, len(down))
        for slot in slots[layer]:
            found.setdefault(slot.op, {})[slot.block] = dict(
                rank=len(down), alpha=alpha_of(folder, config, layer, len(down)))
            at, own_rows = _at(kind, slot), slice(slot.start, slot.start + slot.rows)
            # Every op of a fused layer gets the whole of A and its own rows of B.
            values[f'{at}.down'], values[f'{at}.up'] = down, up[own_rows]
            if kind == 'DoRA':
                of_shape(folder, layer, factors, lora_magnitude_vector=(rows, ))
                values[f'{at}.magnitude'] = factors[MAGNITUDE][own_rows]
    return _configs(kind, found, dropout_of(folder, config)), values


def write_lora(model: nn.Module, slots: Slots, base: Optional[str]) -> Written:
    """LoRA or DoRA. Scales go into B, so that one scale of 1 holds for each layer."""
    state: Dict[str, Tensor] = {}
    ranks: Dict[str, int] = {}
    dora = any(type(m).__name__ == 'DoRA' for m in find_backbone(model)[0].petl.values())
    for layer, held, parts in held_methods(model, slots):
        downs = [(slot, *_factors(method, slot)) for slot, method in parts]
        down = torch.cat([d for _, d, _ in downs])
        up = _stacked(held, [(slot, u) for slot, _, u in downs])
        state[f'{layer}.lora_A.weight'], state[f'{layer}.lora_B.weight'] = down, up
        ranks[layer] = len(down)
        if dora:
            # Rows that are not adapted keep the norm of the base's weight: they do not change.
            backbone, _ = find_backbone(model)
            weights = (backbone.petl.blocks[slot.block].op_parameters(slot.op)[0] for slot in held)
            magnitude = torch.cat([weight.detach().to(down.dtype).norm(dim=1) for weight in weights])
            for slot, method in parts:
                magnitude[slot.start:slot.start + slot.rows] = own(method, slot).magnitude.detach()
            state[f'{layer}.{MAGNITUDE}'] = magnitude
    config = peft_config(ranks, {k: float(r) for k, r in ranks.items()}, drop_rate_of(model), base)
    return state, dict(config, use_dora=True) if dora else config


def _factors(method: nn.Module, slot: Slot) -> Tuple[Tensor, Tensor]:
    """D and s U of one op."""
    factors = own(method, slot)
    down, up = factors.joined() if hasattr(factors, 'joined') else (factors.down, factors.up)
    # joined(): of PiSSA the start that is subtracted belongs to the update.
    return down.detach(), method.scales[slot.block] * up.detach()


def _stacked(held: List[Slot], ups: List[Tuple[Slot, Tensor]]) -> Tensor:
    """Factors (own rows, rank) of the ops of a layer as one, each in its own rows and columns."""
    # Block-diagonal: no op reads the code of another. Ops without a factor keep rows of zeros.
    none = ups[0][1].new_zeros
    return torch.block_diag(*(torch.cat([none(slot.rows, 0), *(up for at, up in ups if at == slot)], 1)
                              for slot in held))


# -- AdaLoRA ----------------------------------------------------------------------------------------------------------

#: What peft adds to the rank by which it divides.
_RANK_EPS = 1e-5


def read_adalora(folder: str, config: Mapping[str, Any], parts: Parts, slots: Slots) -> Read:
    """AdaLoRA. peft divides by the rank at the start whatever is left; a layer without a rank changes nothing."""
    start = _whole_number(folder, config.get('init_r'), 'init_r')
    # The plain setting: peft reads neither alpha_pattern nor use_rslora for this kind.
    alpha = alpha_of(folder, {'lora_alpha': config.get('lora_alpha')}, '', start)
    if alpha <= 0:
        raise ValueError(f'{folder}: lora_alpha={alpha} must be above 0')
    found: Dict[str, Dict[int, Dict[str, Any]]] = {}
    values: Dict[str, Tensor] = {}
    for layer, factors in parts.items():
        of_shape(folder, layer, factors, lora_E=(None, 1))
        rank, rows = len(factors['lora_E']), rows_of(slots[layer])
        of_shape(folder, layer, factors, lora_A=(rank, slots[layer][0].columns), lora_B=(rows, rank))
        _check_kept(folder, config, layer, rank)
        for slot in slots[layer] if rank else ():
            found.setdefault(slot.op, {})[slot.block] = dict(rank=rank, alpha=alpha * rank / (start + _RANK_EPS))
            at = _at('AdaLoRA', slot)
            values[f'{at}.left'] = factors['lora_B'][slot.start:slot.start + slot.rows]
            values[f'{at}.values'], values[f'{at}.right'] = factors['lora_E'][:, 0], factors['lora_A']
    return _configs('AdaLoRA', found, dropout_of(folder, config)), values


def _check_kept(folder: str, config: Mapping[str, Any], layer: str, rank: int) -> None:
    """``rank_pattern`` of this kind says of each triplet whether it was kept; what was not is not stored.

    Raises:
        ValueError: If it says another number than is stored.
    """
    kept = stated(config, 'rank_pattern', f'{layer}.lora_E', None)
    if kept is not None and (not isinstance(kept, list) or sum(each is True for each in kept) != rank):
        raise ValueError(f'{folder}: rank_pattern of {layer} does not keep the {rank} triplets that are stored')


def write_adalora(model: nn.Module, slots: Slots, base: Optional[str]) -> Written:
    """AdaLoRA. Scales go into the values, so that P and Q stay orthonormal."""
    state: Dict[str, Tensor] = {}
    ranks: Dict[str, int] = {}
    for layer, held, parts in held_methods(model, slots):
        triplets = [(slot, method.scales[slot.block], own(method, slot)) for slot, method in parts]
        left = _stacked(held, [(slot, t.left.detach()) for slot, _, t in triplets])
        if left.shape[1]:
            state[f'{layer}.lora_A'] = torch.cat([t.right.detach() for _, _, t in triplets])
            state[f'{layer}.lora_B'] = left
            state[f'{layer}.lora_E'] = torch.cat([scale * t.values.detach() for _, scale, t in triplets])[:, None]
            ranks[layer] = left.shape[1]
    start = max(ranks.values(), default=1)
    for layer in ranks:
        # lora_alpha is the rank at the start, so that this alone is left of peft's scale.
        state[f'{layer}.lora_E'] = state[f'{layer}.lora_E'] * ((start + _RANK_EPS) / start)
    kept = {f'{layer}.lora_E': [n < rank for n in range(start)] for layer, rank in ranks.items() if rank < start}
    return state, plain_config(
        'ADALORA', base, ranks, init_r=start, lora_alpha=start, lora_dropout=drop_rate_of(model), rank_pattern=kept,
        target_r=max(1, round(sum(ranks.values()) / max(1, len(ranks)))), total_step=1, bias='none',
        fan_in_fan_out=False, init_lora_weights=True)


# -- LoHa and LoKr ----------------------------------------------------------------------------------------------------


def read_loha(folder: str, config: Mapping[str, Any], parts: Parts, slots: Slots) -> Read:
    """LoHa."""
    found: Dict[str, Dict[int, Dict[str, Any]]] = {}
    values: Dict[str, Tensor] = {}
    for layer, factors in parts.items():
        of_shape(folder, layer, factors, hada_w1_b=(None, None))
        rank, rows = len(factors['hada_w1_b']), rows_of(slots[layer])
        of_shape(folder, layer, factors, hada_w1_a=(rows, rank), hada_w2_a=(rows, rank),
                 hada_w2_b=tuple(factors['hada_w1_b'].shape))
        check_rank(folder, config, layer, rank)
        for slot in slots[layer]:
            found.setdefault(slot.op, {})[slot.block] = dict(
                rank=rank, alpha=alpha_of(folder, config, layer, rank, 'alpha'))
            at, own_rows = _at('LoHa', slot), slice(slot.start, slot.start + slot.rows)
            for number in (1, 2):
                values[f'{at}.up{number}'] = factors[f'hada_w{number}_a'][own_rows]
                values[f'{at}.down{number}'] = factors[f'hada_w{number}_b']
    return _configs('LoHa', found, 0.), values


def write_loha(model: nn.Module, slots: Slots, base: Optional[str]) -> Written:
    """LoHa. Scales go into U_1."""
    state: Dict[str, Tensor] = {}
    ranks: Dict[str, int] = {}
    for layer, held, parts in held_methods(model, slots):
        factors = [(slot, method.scales[slot.block], own(method, slot)) for slot, method in parts]
        # One of the two factors, as their product is scaled once.
        state[f'{layer}.hada_w1_a'] = _stacked(held, [(slot, scale * f.up1.detach()) for slot, scale, f in factors])
        state[f'{layer}.hada_w2_a'] = _stacked(held, [(slot, f.up2.detach()) for slot, _, f in factors])
        for number in (1, 2):
            state[f'{layer}.hada_w{number}_b'] = torch.cat(
                [getattr(f, f'down{number}').detach() for _, _, f in factors])
        ranks[layer] = state[f'{layer}.hada_w1_a'].shape[1]
    return state, plain_config('LOHA', base, ranks, **ranks_and_alphas(ranks), init_weights=True)


def _side(factors: Mapping[str, Tensor], number: int) -> Tuple[Any, Any, Any]:
    """One side of a Kronecker product: whole, or its two factors; None where it has the other form."""
    name = f'lokr_w{number}'
    return factors.get(name), factors.get(f'{name}_a'), factors.get(f'{name}_b')


def _is_side(whole: Optional[Tensor], up: Optional[Tensor], down: Optional[Tensor]) -> bool:
    """Whether a side has either form, of shapes that fit."""
    if any(t is not None and t.dim() != 2 for t in (whole, up, down)):
        return False
    if whole is not None:
        return up is None and down is None
    return up is not None and down is not None and up.shape[1] == len(down)


def read_lokr(folder: str, config: Mapping[str, Any], parts: Parts, slots: Slots) -> Read:
    """LoKr. The first side is read as a whole. Where neither side has a rank, peft scales by alpha / r."""
    found: Dict[str, Dict[int, Dict[str, Any]]] = {}
    values: Dict[str, Tensor] = {}
    for layer, factors in parts.items():
        (a, a_up, a_down), (b, b_up, b_down) = _side(factors, 1), _side(factors, 2)
        whole = [_is_side(*side) for side in ((a, a_up, a_down), (b, b_up, b_down))]
        if not all(whole):
            raise ValueError(f'{folder}: {layer} has not both sides of a LoKr')
        # Small either way; here the first side has no rank of its own.
        a = a if a is not None else a_up @ a_down
        rank = _whole_number(folder, config.get('r'), 'r') if b_up is None else b_up.shape[1]
        _check_sides(folder, config, layer, (a_up, b_up), b)
        height = len(b if b is not None else b_up)
        # Both sides multiply up to the layer's own size.
        rows, in_dims = rows_of(slots[layer]), a.shape[1] * (b if b is not None else b_down).shape[1]
        if len(a) * height != rows:
            raise ValueError(f'{folder}: the sides of {layer} give {len(a) * height} outputs, the layer has {rows}')
        if b is None and 2 * rank >= max(height, in_dims // a.shape[1]):
            # A rank that is no smaller than the matrix: here such a side is held as a whole.
            b = b_up @ b_down
        if b is not None:
            rank = max(rank, height, in_dims // a.shape[1])
            a = a * (alpha_of(folder, config, layer, 1, 'alpha') / _rank_of(folder, config, layer, b_up))
        for slot in slots[layer]:
            # A (x) B repeats B down the rows; a border inside a repetition cannot be cut.
            if slot.rows % height or slot.start % height:
                raise ValueError(f'{folder}: the Kronecker product of {layer} cannot be divided among its ops: blocks '
                                 f'of {height} rows cross their border')
            found.setdefault(slot.op, {})[slot.block] = dict(
                rank=rank, alpha=float(rank) if b is not None else alpha_of(folder, config, layer, rank, 'alpha'),
                factor=a.shape[1], out_factor=slot.rows // height)
            at = _at('LoKr', slot)
            values[f'{at}.a.whole'] = a[slot.start // height:(slot.start + slot.rows) // height]
            values.update({f'{at}.b.whole': b} if b is not None else {f'{at}.b.up': b_up, f'{at}.b.down': b_down})
    return _configs('LoKr', found, 0.), values


def _check_sides(folder: str, config: Mapping[str, Any], layer: str, ups: Tuple[Optional[Tensor], Optional[Tensor]],
                 b: Optional[Tensor]) -> None:
    """Compare the rank that a config states with a layer's two sides, of which the second ``b`` (Cout, Cin) is whole
    where the rank is no less than half its longer edge.

    Raises:
        WeightFileError: If they differ.
    """
    for up in ups:
        if up is not None:
            check_rank(folder, config, layer, up.shape[1])
    if b is not None and 2 * _rank_of(folder, config, layer, None) < max(b.shape):
        check_rank(folder, config, layer, max(b.shape))


def _whole_number(folder: str, value: Any, key: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'{folder}: {key}={value!r:.40} is not a whole number >= 1')
    return value


def _rank_of(folder: str, config: Mapping[str, Any], layer: str, up: Optional[Tensor]) -> int:
    """Rank that peft divides alpha by."""
    if up is not None:
        return up.shape[1]
    return _whole_number(folder, stated(config, 'rank_pattern', layer, config.get('r')), 'r')


def write_lokr(model: nn.Module, slots: Slots, base: Optional[str]) -> Written:
    """LoKr. Scales go into the first side, which is written as a whole."""
    state: Dict[str, Tensor] = {}
    ranks: Dict[str, int] = {}
    splits: List[Tuple[int, int]] = []
    split = next(iter(find_backbone(model)[0].petl.values())).split
    for layer, held, parts in held_methods(model, slots):
        sides = [(method.scale_of(slot.block, slot.op), own(method, slot)) for slot, method in parts]
        first = sides[0][1]['b']
        # peft has one product for the layer: A of the ops can stand on top of each other only over the same
        # B.
        same = all(torch.equal(s['b'].matrix(), first.matrix()) for _, s in sides)
        if len(parts) != len(held) or not same:
            raise ValueError(f'{layer} holds {", ".join(slot.op for slot in held)}; peft has one Kronecker product for '
                             'all of them, and here their second sides differ')
        a = torch.cat([scale * s['a'].matrix().detach() for scale, s in sides])
        state[f'{layer}.lokr_w1'] = a
        if first.is_whole:
            state[f'{layer}.lokr_w2'] = first.whole.detach()
        else:
            state[f'{layer}.lokr_w2_a'], state[f'{layer}.lokr_w2_b'] = first.up.detach(), first.down.detach()
        b = first.matrix()
        ranks[layer] = max(b.shape) if first.is_whole else first.up.shape[1]
        splits += [(a.shape[0] * b.shape[0], a.shape[0]), (a.shape[1] * b.shape[1], a.shape[1])]
    return state, plain_config('LOKR', base, ranks, **ranks_and_alphas(ranks), init_weights=True, decompose_both=False,
                               decompose_factor=_factor_of(splits, split))


def _factor_of(splits: List[Tuple[int, int]], split: Callable[[int, int], Tuple[int, int]]) -> int:
    """peft's one setting that divides all widths as they are divided here."""
    # -1 first: near the root, peft's default; then every first side that occurs.
    for factor in (-1, *sorted({first for _, first in splits}, reverse=True)):
        if all(split(size, factor)[0] == first for size, first in splits):
            return factor
    raise ValueError('a folder of peft divides all widths by one decompose_factor; here they are divided as '
                     + ', '.join(f'{size} = {first} x {size // first}' for size, first in dict.fromkeys(splits)))
