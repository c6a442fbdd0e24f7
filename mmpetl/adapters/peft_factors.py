# SPDX-License-Identifier: Apache-2.0
"""Tensors of IA3, VeRA, OFT and BOFT in peft's form, to and from methods."""

import math
import re
from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
from torch import Tensor, nn

from ..tuning import find_backbone
from .peft_layers import (
    Parts,
    Slot,
    Slots,
    drop_rate_of,
    dropout_of,
    held_methods,
    of_shape,
    only,
    own,
    plain_config,
    rows_of,
)

Read = Tuple[List[Dict[str, Any]], Dict[str, Tensor]]
Written = Tuple[Dict[str, Tensor], Dict[str, Any]]
#: Key under which tensors stand that belong to no layer.
SHARED = ''


def read_ia3(folder: str, config: Mapping[str, Any], parts: Parts, slots: Slots) -> Read:
    """One IA3 per op and side of it, and the values of its factors."""
    found: Dict[Tuple[str, str], List[int]] = {}
    values: Dict[str, Tensor] = {}
    for layer, factors in parts.items():
        scale = factors['ia3_l']
        # The shape tells: (1, Cin) scales what the layer reads, (Cout, 1) what it gives.
        inputs = scale.dim() == 2 and scale.shape[0] == 1
        for slot in slots[layer]:
            part = scale.flatten() if inputs else scale.flatten()[slot.start:slot.start + slot.rows]
            name = f'ia3_{slot.op}_{"in" if inputs else "out"}'
            found.setdefault((slot.op, 'input' if inputs else 'output'), []).append(slot.block)
            values[f'petl.{name}.blocks.{slot.block}.{slot.op}'] = part
    configs = [dict(type='IA3', name=f'ia3_{op}_{"in" if at == "input" else "out"}', ops=[op], at=at, layers=sorted(b))
               for (op, at), b in found.items()]
    return configs, values


def write_ia3(model: nn.Module, slots: Slots, base: Optional[str]) -> Written:
    """IA3."""
    state: Dict[str, Tensor] = {}
    inputs: List[str] = []
    for layer, held, parts in held_methods(model, slots):
        first = parts[0][1]
        factors = {slot: own(method, slot).detach() for slot, method in parts}
        if first.at == 'input':
            if len(held) > 1:
                raise ValueError(f'{layer} holds several ops with one input; peft scales it for all of them at once')
            inputs.append(layer)
            state[f'{layer}.ia3_l'] = factors[held[0]][None]
            continue
        # Ones for ops of the layer that are not adapted.
        scale = next(iter(factors.values())).new_ones(sum(slot.rows for slot in held), 1)
        for slot, factor in factors.items():
            scale[slot.start:slot.start + slot.rows, 0] = factor
        state[f'{layer}.ia3_l'] = scale
    layers = {key.rsplit('.', 1)[0]: None for key in state}
    return state, plain_config('IA3', base, layers, feedforward_modules=sorted(inputs), fan_in_fan_out=False,
                               init_ia3_weights=True)


# -- VeRA -------------------------------------------------------------------------------------------------------------


def read_vera(folder: str, config: Mapping[str, Any], parts: Parts, slots: Slots) -> Read:
    """VeRA with the folder's matrices: one method for each op and first row, which says which rows of B it takes."""
    shared = parts.get(SHARED, {})
    # peft can draw them from a key, by a generator whose numbers are no promise.
    if set(shared) != {'vera_A', 'vera_B'}:
        raise ValueError(f'{folder}: its matrices vera_A and vera_B are not there: save it with save_projection=True')
    of_shape(folder, 'the folder', shared, vera_A=(None, None))
    rank = len(shared['vera_A'])
    of_shape(folder, 'the folder', shared, vera_B=(None, rank))
    found: Dict[Tuple[str, int], List[Slot]] = {}
    vectors: List[Tuple[Slot, str, Tensor, Tensor]] = []
    for layer, factors in parts.items():
        if layer == SHARED:
            continue
        rows = rows_of(slots[layer])
        of_shape(folder, layer, factors, vera_lambda_b=(rows, ), vera_lambda_d=(rank, ))
        columns = slots[layer][0].columns
        if rows > len(shared['vera_B']) or columns > shared['vera_A'].shape[1]:
            raise ValueError(f'{folder}: its matrices are made for {shared["vera_A"].shape[1]} inputs and '
                             f'{len(shared["vera_B"])} outputs, {layer} has {columns} and {rows}')
        for slot in slots[layer]:
            # The rows of B that an op takes depend on its place in the layer.
            found.setdefault((slot.op, slot.start), []).append(slot)
            vectors.append((slot, f'vera_{slot.op}_{slot.start}', factors['vera_lambda_d'],
                            factors['vera_lambda_b'][slot.start:slot.start + slot.rows]))
    values = {}
    for slot, name, d, b in vectors:
        values[f'petl.{name}.blocks.{slot.block}.{slot.op}.d'] = d
        values[f'petl.{name}.blocks.{slot.block}.{slot.op}.b'] = b
    configs = []
    for (op, start), held in found.items():
        name, layers = f'vera_{op}_{start}', sorted(slot.block for slot in held)
        values[f'petl.{name}.a'] = shared['vera_A'][:, :max(slot.columns for slot in held)]
        values[f'petl.{name}.b'] = shared['vera_B'][start:start + max(slot.rows for slot in held)]
        configs.append(dict(type='VeRA', name=name, ops=[op], layers=layers, rank=rank, stored=True,
                            drop_rate=dropout_of(folder, config, 'vera_dropout')))
    return configs, values


def write_vera(model: nn.Module, slots: Slots, base: Optional[str]) -> Written:
    """VeRA. peft has one A and one B for all layers, and of B a layer takes the first rows.

    Each method and place in a layer gets columns of B (and rows of A) of its own, so that a layer which holds several
    ops finds in their rows what the methods have, and zeros elsewhere.
    """
    places: Dict[Tuple[int, int, int], slice] = {}
    methods = list(find_backbone(model)[0].petl.values())
    held_layers = list(held_methods(model, slots))

    def place(slot: Slot, held: List[Slot], method: nn.Module) -> Tuple[int, int, int]:
        return methods.index(method), slot.start, slot.rows if len(held) > 1 else 0

    rank = 0
    for _, held, parts in held_layers:
        for slot, method in parts:
            if place(slot, held, method) not in places:
                places[place(slot, held, method)] = slice(rank, rank + len(method.a))
                rank += len(method.a)
    widths = {layer: held[0].columns for layer, held, _ in held_layers}
    most = max(rows_of(held) for _, held, _ in held_layers)
    a = methods[0].a.new_zeros(rank, max(widths.values()))
    b = a.new_zeros(most, rank)
    for (number, start, rows), columns in places.items():
        method = methods[number]
        chosen = method.b[:rows or None][:most - start]
        a[columns, :method.a.shape[1]] = method.a[:, :a.shape[1]]
        # peft multiplies the first rows of B: those of another op of the layer are zero in these columns.
        b[start:start + len(chosen), columns] = chosen
    state = {'vera_A': a, 'vera_B': b}
    for layer, held, parts in held_layers:
        d, factor = a.new_zeros(rank), a.new_zeros(rows_of(held))
        for slot, method in parts:
            vectors = own(method, slot)
            d[places[place(slot, held, method)]] = vectors['d'].detach()
            factor[slot.start:slot.start + slot.rows] = vectors['b'].detach()
        state[f'{layer}.vera_lambda_d'], state[f'{layer}.vera_lambda_b'] = d, factor
    return state, plain_config('VERA', base, widths, r=rank, projection_prng_key=0, save_projection=True,
                               vera_dropout=drop_rate_of(model), d_initial=0.1, bias='none', fan_in_fan_out=False,
                               init_weights=True)


# -- OFT --------------------------------------------------------------------------------------------------------------


def read_oft(folder: str, config: Mapping[str, Any], parts: Parts, slots: Slots) -> Read:
    """OFT. peft's exact inverse takes Q with the other sign than its series, whose first four terms it never cuts."""
    series, terms = config.get('use_cayley_neumann', True), config.get('num_cayley_neumann_terms', 5)
    if series and (isinstance(terms, bool) or not isinstance(terms, int) or not 3 <= terms <= 64):
        raise ValueError(f'{folder}: num_cayley_neumann_terms={terms!r:.40} is not read here: 3 to 64 are')
    version = re.match(r'(\d{1,6})\.(\d{1,6})', str(config.get('peft_version')))
    if series and (version is None or (int(version[1]), int(version[2])) < (0, 18)):
        raise ValueError(f'{folder}: peft before 0.18 had another series, and this folder says '
                         f'peft_version={config.get("peft_version")!r:.40}: train it again')
    found: Dict[Tuple[str, int, bool], List[int]] = {}
    chosen: Dict[Tuple[str, int, bool], List[Tuple[int, Tensor]]] = {}
    for layer, factors in parts.items():
        of_shape(folder, layer, factors, oft_R__weight=(None, None))
        upper = factors['oft_R.weight']
        # The b with b (b - 1) / 2 numbers above its diagonal.
        size = (1 + math.isqrt(1 + 8 * upper.shape[1])) // 2
        if size * (size - 1) // 2 != upper.shape[1]:
            raise ValueError(f'{folder}: oft_R of {layer} has {upper.shape[1]} numbers a block, which is no triangle')
        for slot in slots[layer]:
            key = slot.op, size, bool(config.get('block_share'))
            found.setdefault(key, []).append(slot.block)
            # With the other sign of Q the exact form is the inverse rotation.
            chosen.setdefault(key, []).append((slot.block, upper if series else -upper))
    configs, values = [], {}
    for (op, size, share), blocks in found.items():
        name = f'oft_{op}_{size}'
        configs.append(dict(type='OFT', name=name, ops=[op], layers=sorted(blocks), block_size=size, block_share=share,
                            neumann_terms=max(terms, 4) if series else 0))
        values.update({f'petl.{name}.blocks.{i}.{op}': upper for i, upper in chosen[op, size, share]})
    return configs, values


def write_oft(model: nn.Module, slots: Slots, base: Optional[str]) -> Written:
    """OFT. A layer that holds several ops has one rotation for all of them."""
    state: Dict[str, Tensor] = {}
    settings: Dict[str, Tuple[int, bool, int]] = {}
    for layer, held, parts in held_methods(model, slots):
        uppers = [own(method, slot).detach() for slot, method in parts]
        _check_one_rotation(layer, held, uppers)
        method = parts[0][1]
        settings[layer] = method.block_size, method.block_share, method.neumann_terms
        state[f'{layer}.oft_R.weight'] = uppers[0] if method.neumann_terms else -uppers[0]
    size, share, terms = only(settings, 'block_size, block_share and neumann_terms')
    if 0 < terms < 4:
        raise ValueError(f'peft has no series of {terms} terms: 4 or more, or the exact inverse')
    return state, plain_config('OFT', base, settings, r=0, oft_block_size=size, block_share=share, coft=False,
                               use_cayley_neumann=bool(terms), num_cayley_neumann_terms=terms or 5,
                               peft_version='0.18.0', module_dropout=0.,
                               bias='none', fan_in_fan_out=False, init_weights=True)


def _check_one_rotation(layer: str, held: List[Slot], uppers: List[Tensor]) -> None:
    """Raises:
        ValueError: If the ops of a layer are not rotated by the same numbers.
    """
    if len(uppers) != len(held) or any(not torch.equal(uppers[0], upper) for upper in uppers):
        raise ValueError(f'{layer} holds {", ".join(slot.op for slot in held)}; peft rotates what they read once '
                         'for all of them, and here each has a rotation of its own')


def read_boft(folder: str, config: Mapping[str, Any], parts: Parts, slots: Slots) -> Read:
    """BOFT. peft stores whole blocks, of which only the skew-symmetric part acts."""
    found: Dict[Tuple[str, int, int], List[int]] = {}
    values: Dict[str, Tensor] = {}
    for layer, factors in parts.items():
        rows = rows_of(slots[layer])
        of_shape(folder, layer, factors, boft_R=(None, None, None, None), boft_s=(rows, 1))
        blocks = factors['boft_R']
        number, size = blocks.shape[0], blocks.shape[-1]
        of_shape(folder, layer, factors, boft_R=(number, slots[layer][0].columns // max(1, size), size, size))
        row, column = torch.triu_indices(size, size, 1)
        upper = ((blocks - blocks.transpose(-2, -1)) / 2)[..., row, column]
        for slot in slots[layer]:
            name = f'boft_{slot.op}_{size}_{number}'
            found.setdefault((slot.op, size, number), []).append(slot.block)
            at = f'petl.{name}.blocks.{slot.block}.{slot.op}'
            values[f'{at}.upper'] = upper
            values[f'{at}.scale'] = factors['boft_s'][slot.start:slot.start + slot.rows, 0]
    configs = [dict(type='BOFT', name=f'boft_{op}_{size}_{number}', ops=[op], layers=sorted(blocks), block_size=size,
                    factors=number) for (op, size, number), blocks in found.items()]
    return configs, values


def write_boft(model: nn.Module, slots: Slots, base: Optional[str]) -> Written:
    """BOFT. A layer that holds several ops has one rotation for all of them, and scales of each."""
    state: Dict[str, Tensor] = {}
    settings: Dict[str, Tuple[int, int]] = {}
    for layer, held, parts in held_methods(model, slots):
        _check_one_rotation(layer, held, [own(method, slot)['upper'].detach() for slot, method in parts])
        slot, method = parts[0]
        size = method.block_size
        upper = own(method, slot)['upper'].detach()
        skew = upper.new_zeros(*upper.shape[:2], size, size)
        row, column = torch.triu_indices(size, size, 1)
        skew[..., row, column] = upper
        state[f'{layer}.boft_R'] = skew - skew.transpose(-2, -1)
        state[f'{layer}.boft_s'] = torch.cat([own(m, s)['scale'].detach() for s, m in parts])[:, None]
        settings[layer] = size, method.factors
    size, number = only(settings, 'block_size and factors')
    return state, plain_config('BOFT', base, settings, boft_block_size=size, boft_block_num=0, boft_dropout=0.,
                               boft_n_butterfly_factor=number, bias='none', fan_in_fan_out=False, init_weights=True)
