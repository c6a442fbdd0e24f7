# SPDX-License-Identifier: Apache-2.0
"""Methods named by data: looked up by their registered name alone, with checked arguments, before memory is taken.

A config is a program that its user wrote, so it may name any class. The header of an adapter file comes from whoever
made the file: a dotted name there would import a module of the writer's choice, and a number could ask for all memory.
"""

import math
import re
import typing
from collections.abc import Mapping, Sequence
from inspect import Parameter, signature
from types import UnionType
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from torch import nn

from ..registry import METHODS
from ..sites import BlockSpec, nearest
from .attach import build_methods
from .container import PETL

#: Largest number, longest text and longest list that an argument from a file may be.
MAX_NUMBER, MAX_TEXT, MAX_ITEMS = 1 << 20, 200, 1024
#: Methods in one file.
MAX_METHODS = 32
#: Numbers that methods may hold beyond those that the file brings; 64 MB in fp32.
MAX_EXTRA = 1 << 24

_PLAIN = (bool, int, float, str)


def methods_from_data(configs: Sequence[Any], specs: Sequence[BlockSpec], source: str,
                      stored: int) -> List[Dict[str, Any]]:
    """Check the method configs of a file; what is returned may be built.

    Args:
        configs: The method configs as the file gives them.
        specs: Blocks of the backbone.
        source: Name of the file, for messages.
        stored: Numbers in the file's tensors, which bound what its methods may hold.

    Raises:
        ValueError: If a type is not the exact name of a registered method, an argument is unknown, of another kind or
            beyond the sizes above, a method refuses its arguments, or the methods would be far larger than the file.
    """
    if len(configs) > MAX_METHODS:
        raise ValueError(f'{source}: {len(configs)} methods; at most {MAX_METHODS} are read from a file')
    # Registers the shipped methods only; the location is ours, not the file's.
    METHODS.import_from_location()
    checked = [_checked(cfg, source) for cfg in configs]
    _check_size(checked, specs, source, stored)
    return checked


def _checked(cfg: Any, source: str) -> Dict[str, Any]:
    kind = cfg.get('type') if isinstance(cfg, Mapping) else None
    if not isinstance(kind, str) or kind not in METHODS.module_dict:
        hint = nearest(str(kind)[:MAX_TEXT], METHODS.module_dict)
        raise ValueError(f'{source}: {kind!r:.80} is not the name of a registered method; nothing was imported{hint}')
    cls = METHODS.module_dict[kind]
    kinds = typing.get_type_hints(cls.__init__)
    known = [
        n for n, p in signature(cls.__init__).parameters.items()
        if n not in ('self', 'specs') and p.kind in (Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)
    ]
    for key, value in cfg.items():
        if key == 'type':
            continue
        if key == 'name':
            _check_name(value, source)
            continue
        if key not in known:
            raise ValueError(f'{source}: {kind}: unknown argument {key!r:.80}' + nearest(str(key)[:MAX_TEXT], known))
        if not _fits(value, kinds.get(key)):
            raise ValueError(f'{source}: {kind}: {key}={value!r:.80} is not of a kind or size that this argument takes '
                             'from a file')
    return dict(cfg)


def _check_name(name: Any, source: str) -> None:
    # A method named like an attribute of its container would hide it.
    taken = dir(PETL(nn.Identity(), '', {}, 'eval'))
    if not isinstance(name, str) or not re.fullmatch(r'[A-Za-z_][A-Za-z0-9_-]{0,63}', name) or name in taken:
        raise ValueError(f'{source}: {name!r:.80} is no name for a method: use letters, digits, _ and -')


def _small(value: Any) -> bool:
    """Whether a value is a plain one of a harmless size."""
    if isinstance(value, str):
        return len(value) <= MAX_TEXT and value.isprintable()
    if isinstance(value, (int, float)):
        return math.isfinite(value) and abs(value) <= MAX_NUMBER
    return value is None


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value is of the annotated kind: a plain value, a flat list, a mapping where the annotation has one."""
    if kind is None or not _bounded(value):
        return False
    # Against the annotation of the argument: what a file may say is what a config may say, less what is
    # not plain.
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, UnionType):
        return any(_fits(value, option) for option in inner)
    if origin is typing.Literal:
        return any(type(value) is type(option) and value == option for option in inner)
    if kind is Any:
        return _small(value)
    if kind is type(None):
        return value is None
    if isinstance(kind, type) and issubclass(kind, _PLAIN):
        # type and not isinstance: True is an int for Python, and no rank.
        return type(value) is kind or kind is float and type(value) is int
    of_item = (inner or (Any, ))[-1]
    container: Any = origin or kind
    if isinstance(container, type) and issubclass(container, Mapping):
        return isinstance(value, Mapping) and all(_fits(v, of_item) for v in value.values())
    if isinstance(container, type) and issubclass(container, Sequence):
        items = of_item if of_item is not Ellipsis else inner[0]
        return isinstance(value, (list, tuple)) and all(_fits(v, items) for v in value)
    return False


def _bounded(value: Any, depth: int = 0) -> bool:
    if isinstance(value, Mapping):
        return depth < 2 and len(value) <= MAX_ITEMS and all(
            isinstance(k, str) and _small(k) and _bounded(v, depth + 1) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return depth < 2 and len(value) <= MAX_ITEMS and all(_bounded(v, depth + 1) for v in value)
    return _small(value)


def _check_size(configs: Sequence[Mapping[str, Any]], specs: Sequence[BlockSpec], source: str, stored: int) -> None:
    """Build the methods without memory and count what they would hold."""
    problem: Optional[Tuple[str, Any]] = None
    try:
        # Shapes without memory: a rank of a million costs nothing here.
        with torch.device('meta'):
            methods = build_methods(configs, specs)
    except ValueError as error:
        raise ValueError(f'{source}: {error}') from None
    except (TypeError, RuntimeError, ArithmeticError, LookupError, NotImplementedError) as error:
        problem = (type(error).__name__, error)
    if problem:
        lines = str(problem[1]).splitlines() or ['']
        raise ValueError(f'{source}: its methods cannot be built: {problem[0]}: {lines[0][:MAX_TEXT]}')
    tensors = [t for method in methods.values() for t in (*method.parameters(), *method.buffers())]
    held = sum(t.numel() for t in tensors)
    # Buffers may be as large as the parameters; the rest is room for what a method draws anew and never
    # stores.
    if held > 2 * stored + MAX_EXTRA:
        raise ValueError(f'{source}: its methods would hold {held:,} numbers, the file has {stored:,}: do not use it')
