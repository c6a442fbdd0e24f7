# SPDX-License-Identifier: Apache-2.0
"""What a search varies: ``KEY=KIND(...)``, one entry of a config and the values that it may take."""

import ast
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Sequence, Tuple

from mmengine.config import Config

from ..suggest import nearest
from .search import ALIASES, LR

#: Kind -> what its arguments are called.
KINDS: Dict[str, Tuple[str, ...]] = {
    'choice': ('values', ), 'uniform': ('low', 'high'), 'loguniform': ('low', 'high'), 'randint': ('low', 'high')}


@dataclass(frozen=True)
class Range:
    """Values of one entry.

    Attributes:
        kind: 'choice', 'uniform', 'loguniform' or 'randint'.
        args: Its arguments: a list of values, or the two ends (randint: without the upper one).
    """
    kind: str
    args: Tuple[Any, ...]

    def tried(self) -> List[Any]:
        """The values of a choice; the two ends of an interval."""
        if self.kind == 'choice':
            return list(self.args[0])
        low, high = self.args
        return [low, high - 1] if self.kind == 'randint' else [low, high]

    def __str__(self) -> str:
        return f'{self.kind}({", ".join(map(repr, self.args))})'


def parse_range(text: str) -> Tuple[str, Range]:
    """Read ``lr=loguniform(1e-4, 1e-1)``.

    Args:
        text: An entry of the config (``lr`` and ``wd`` for short), '=', and a range with literal arguments.

    Raises:
        ValueError: If the text has another form, the kind is unknown, or the ends do not fit.
    """
    key, equals, value = text.partition('=')
    key = ALIASES.get(key.strip(), key.strip())
    form = f'{text!r}: write KEY=KIND(...), for example lr=loguniform(1e-4, 1e-1) or KEY=choice([4, 8])'
    try:
        call = ast.parse(value.strip(), mode='eval').body
        args = tuple(ast.literal_eval(arg) for arg in call.args) if isinstance(call, ast.Call) else ()
    except (SyntaxError, ValueError):
        raise ValueError(f'the range {form}') from None
    if not (equals and key and isinstance(call, ast.Call) and isinstance(call.func, ast.Name)) or call.keywords:
        raise ValueError(f'the range {form}')
    kind = call.func.id
    if kind not in KINDS:
        raise ValueError(f'{text!r}: unknown kind {kind!r}{nearest(kind, KINDS)}')
    _check(text, kind, args)
    return key, Range(kind, args)


def _check(text: str, kind: str, args: Sequence[Any]) -> None:
    """Raise ValueError if the arguments do not fit the kind."""
    if len(args) != len(KINDS[kind]):
        raise ValueError(f'{text!r}: {kind} takes {", ".join(KINDS[kind])}, got {len(args)} arguments')
    if kind == 'choice':
        if not isinstance(args[0], (list, tuple)) or not args[0]:
            raise ValueError(f'{text!r}: choice takes a list of values, such as choice([4, 8])')
        return
    low, high = args
    whole = int if kind == 'randint' else (int, float)
    if not all(isinstance(end, whole) and not isinstance(end, bool) for end in args) or not low < high:
        raise ValueError(f'{text!r}: {kind} takes two numbers, the smaller one first')
    if kind == 'loguniform' and low <= 0:
        raise ValueError(f'{text!r}: the ends of loguniform must be greater than 0')


def default_space(cfg: Config) -> Dict[str, Range]:
    """The learning rate over three decades around that of the config.

    Raises:
        ValueError: If the config has none.
    """
    lr = cfg.get('optim_wrapper', {}).get('optimizer', {}).get('lr')
    if not isinstance(lr, (int, float)):
        raise ValueError(f'the config has no {LR}: name what to search with --space')
    return {LR: Range('loguniform', (lr / 10 ** 1.5, lr * 10 ** 1.5))}


def space_of(cfg: Config, texts: Sequence[str]) -> Dict[str, Range]:
    """The ranges that were asked for, each checked against the config.

    Raises:
        ValueError: If a range cannot be read, or an entry that is not there has no place in the config.
    """
    if not texts:
        return default_space(cfg)
    listed = [parse_range(text) for text in texts]
    found = dict(listed)
    twice = [key for number, (key, _) in enumerate(listed) if key in dict(listed[:number])]
    if twice:
        raise ValueError(f'--space names {twice[0]} twice: give it one range')
    for key in found:
        place: Any = cfg.to_dict()
        parts = key.split('.')
        for depth, part in enumerate(parts[:-1]):
            if isinstance(place, (list, tuple)) and part.isdigit() and int(part) < len(place):
                place = place[int(part)]
            elif isinstance(place, Mapping) and part in place:
                place = place[part]
            else:
                known = list(place) if isinstance(place, Mapping) else [str(i) for i in range(len(place))] \
                    if isinstance(place, (list, tuple)) else []
                raise ValueError(f'the config has no {".".join(parts[:depth + 1])}{nearest(part, known)}')
    return found


def flat(params: Mapping[str, Any]) -> List[str]:
    """Parameters as ``KEY=VALUE`` texts, sorted."""
    return [f'{key}={value!r}' for key, value in sorted(params.items())]
