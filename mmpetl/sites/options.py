# SPDX-License-Identifier: Apache-2.0
"""Options of methods: blocks, values per block, ops, whole numbers; and how a wrong one is answered."""

from typing import Any, Dict, List, Mapping, Sequence, Tuple, Union

from ..suggest import nearest
from .spec import ALL_OPS

Layers = Union[None, int, str, Sequence[int]]
PerLayer = Union[Any, Sequence[Any], Mapping[str, Any]]


def parse_layers(layers: Layers, num_layers: int, owner: str = 'layers') -> Tuple[int, ...]:
    """Block indices named by ``layers``.

    Args:
        layers: None (all blocks), an int, a list of ints, or a string of comma-separated indices and inclusive ranges
            such as ``'0-5,11'``. Negative ints count from the end.
        num_layers: Number of blocks L.
        owner: Name of the option for error messages.

    Raises:
        ValueError: If a block lies outside 0..L-1, nothing is selected, or the string cannot be read.
    """
    if layers is None:
        return tuple(range(num_layers))
    if isinstance(layers, str):
        found: List[int] = []
        for part in layers.split(','):
            first, dash, last = part.strip().partition('-')
            if not first.isdigit() or (dash and not last.isdigit()):
                raise ValueError(
                    f"{owner}={layers!r} cannot be read: write block indices and inclusive ranges like '0-5,11'")
            ends = int(first), int(last if dash else first)
            found += range(ends[0], ends[1] + 1) if ends[1] < num_layers else ends  # no list of a billion blocks
    else:
        found = [layers] if isinstance(layers, int) else [int(i) for i in layers]
    resolved = [i + num_layers if i < 0 else i for i in found]
    outside = [f for f, i in zip(found, resolved) if not 0 <= i < num_layers]
    if outside:
        raise ValueError(
            f'{owner}={layers!r} names block {outside[0]}, but the backbone has blocks 0..{num_layers - 1}')
    if not resolved:
        raise ValueError(f'{owner}={layers!r} selects no block')
    return tuple(sorted(set(resolved)))


def per_layer(value: PerLayer, layers: Sequence[int], num_layers: int, name: str) -> Dict[int, Any]:
    """Spread a hyper-parameter over blocks.

    Args:
        value: One value for all blocks; a list with one value per adapted block (or per block of the backbone); or a
            mapping from ranges to values, for example ``{'0-5': 4, '6-11': 8}`` with the optional key ``'default'``.
        layers: Adapted blocks.
        num_layers: Number of blocks L.
        name: Name of the option for error messages.

    Returns:
        ``{block index: value}`` for every adapted block.

    Raises:
        ValueError: If a list has the wrong length or a mapping leaves an adapted block without a value.
    """
    if isinstance(value, Mapping):
        spread = {i: value['default'] for i in layers} if 'default' in value else {}
        for key, item in value.items():
            if key != 'default':
                spread.update({i: item for i in parse_layers(key, num_layers, name) if i in set(layers)})
        missing = [i for i in layers if i not in spread]
        if missing:
            raise ValueError(
                f"{name}={dict(value)!r} gives no value for block {missing[0]}: add its range or the key 'default'")
        return spread
    if isinstance(value, (list, tuple)):
        if len(value) == len(layers):
            return dict(zip(layers, value))
        if len(value) == num_layers:
            return {i: value[i] for i in layers}
        raise ValueError(f'{name} has {len(value)} values, but {len(layers)} blocks are adapted (of {num_layers}): '
                         f'give one value, {len(layers)} values or a mapping of ranges')
    return {i: value for i in layers}


def check_ops(ops: Union[str, Sequence[str]], owner: str, known: Sequence[str] = ALL_OPS) -> Tuple[str, ...]:
    """Validate a selection of ops; a string like ``'qv'`` is read letter by letter, a single op name as itself.

    Raises:
        ValueError: If an op is unknown or none is given.
    """
    if isinstance(ops, str):
        ops = [ops] if ops in tuple(known) else [o for o in (ops.split(',') if ',' in ops else ops)]
    ops = [str(o).strip() for o in ops]
    for op in ops:
        if op not in known:
            raise ValueError(f'{owner}: unknown op {op!r}' + nearest(op, known))
    if not ops:
        raise ValueError(f'{owner}: no op given; choose from {", ".join(known)}')
    return tuple(dict.fromkeys(ops))


def positive(value: Any, name: str, owner: str) -> int:
    """``value`` as an int >= 1.

    Raises:
        ValueError: If it is not a whole number >= 1.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f'{owner}: {name} must be a whole number >= 1, got {value!r}')
    return value
