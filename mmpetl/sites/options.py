# SPDX-License-Identifier: Apache-2.0
"""Options of methods: blocks, values per block, ops, whole numbers; and how a wrong one is answered."""

import math
import typing
from functools import lru_cache
from numbers import Integral, Real
from types import UnionType
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple, Union

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
        ValueError: If a block lies outside 0..L-1 or is named twice, nothing is selected, or the string cannot be read.
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
        raise ValueError(f'{owner}={layers!r} selects no block: name at least one')
    twice = next((i for i in resolved if resolved.count(i) > 1), None) if len(set(resolved)) < len(resolved) else None
    if twice is not None:
        raise ValueError(f'{owner}={layers!r} names block {twice} twice: name each once')
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
    given = ops
    if isinstance(ops, str):
        ops = [ops] if ops in tuple(known) else [o for o in (ops.split(',') if ',' in ops else ops)]
    ops = [str(o).strip() for o in ops]
    for op in ops:
        if op not in known:
            # A word was read letter by letter: name the word, too.
            inside = f' in ops={given!r}' if isinstance(given, str) and op != given else ''
            raise ValueError(f'{owner}: unknown op {op!r}{inside}' + nearest(op, known))
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


# -- all arguments of a method ----------------------------------------------------------------------------------------

#: Options that multiply what a method adds: at 0 it does nothing, and nothing of it trains.
FACTORS = ('alpha', 'scale')
_WORDS = {bool: 'True or False', int: 'a whole number', float: 'a finite number', str: 'a text'}


def check_arguments(build: Callable[..., Any], owner: str, arguments: Mapping[str, Any],
                    factor_words: Sequence[str] = ()) -> None:
    """Compare the arguments of a method with the annotations of its constructor, before anything is made of them.

    Args:
        build: The constructor.
        owner: Name of the method, for messages.
        arguments: What it is given.
        factor_words: Texts that a factor may be instead of a number.

    Raises:
        ValueError: Naming method, option and value: another kind of value, a number that is not finite, a rate outside
            0..1, a factor of 0.
    """
    kinds = annotations_of(build)
    for name, value in arguments.items():
        kind = kinds.get(name, Any)
        if not is_a(value, kind):
            raise ValueError(f'{owner}: {name}={value!r:.80}: give {kind_words(kind)}')
        for one in _items(value):
            if name.endswith(('drop_rate', 'drop_path_rate')) and not (is_a(one, float) and 0 <= one < 1):
                raise ValueError(f'{owner}: {name}={value!r:.80}: give a rate from 0 to below 1')
            named = one is None and name == 'alpha' or one in factor_words
            if name in FACTORS and not named and not (is_a(one, float) and one):
                raise ValueError(f'{owner}: {name}={value!r:.80}: give a finite number other than 0, with which '
                                 'nothing would train')


@lru_cache(maxsize=None)
def annotations_of(build: Callable[..., Any]) -> Dict[str, Any]:
    """Argument -> annotated kind; {} where the annotations cannot be read."""
    try:
        return typing.get_type_hints(build)
    except Exception:  # names that only a type checker imports
        return {}


def _items(value: Any) -> List[Any]:
    """One value, or those of a list or mapping of blocks."""
    if isinstance(value, Mapping):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else [value]


def is_a(value: Any, kind: Any) -> bool:
    """Whether a value is of the annotated kind."""
    if kind is Any or not (kind in _WORDS or typing.get_origin(kind)):
        return True if kind is not type(None) else value is None
    inner = typing.get_args(kind)
    if typing.get_origin(kind) in (Union, UnionType):
        return any(is_a(value, option) for option in inner)
    if kind in _WORDS:
        if kind in (bool, str):
            return isinstance(value, kind)
        fits = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
        return fits and math.isfinite(value)
    if isinstance(value, Mapping) or typing.get_origin(kind) is not typing.get_origin(Sequence[int]):
        return isinstance(value, typing.get_origin(kind))
    return isinstance(value, Sequence) and not isinstance(value, str) and all(is_a(item, inner[0]) for item in value)


def kind_words(kind: Any) -> str:
    """What a kind of value is called: 'a whole number'."""
    return ' or '.join(dict.fromkeys(_words(kind)))


def _words(kind: Any) -> List[str]:
    """What a kind of value is called."""
    if typing.get_origin(kind) in (Union, UnionType):
        return [word for option in typing.get_args(kind) for word in _words(option)]
    if typing.get_origin(kind) in (dict, typing.get_origin(Mapping[str, int])):
        return ['a dict']
    if typing.get_origin(kind):
        return [f'a list of {_words(part)[0].removeprefix("a ")}s' for part in typing.get_args(kind)[:1]]
    return ['None'] if kind is type(None) else [_WORDS.get(kind, 'another value')]
