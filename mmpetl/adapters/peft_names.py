# SPDX-License-Identifier: Apache-2.0
"""Which layers a setting of a peft folder means: names, ends of names, and regular expressions.

An expression out of a file may be made to run for years, so only those run here whose work is known beforehand: single
characters and classes, repeated or not, and alternatives that are not repeated. k repetitions can share out a name of
n characters in C(n + k, k) ways.
"""

import math
import os
import re
from typing import Any, Collection, Dict, Mapping, Set

from ..weights.errors import WeightFileError

CONFIG = 'adapter_config.json'
#: A name, or the end of one.
_PLAIN = re.compile(r'[\w.]*')
_ONE = r'(?:\\[dDwWsS.\-]|\[\^?[\w.\-]+\]|[\w.\-])(?:[*+?]\??)?'
_GROUP = rf'\((?:\?:)?(?:{_ONE})*(?:\|(?:{_ONE})*)*\)\??'
_KNOWN = re.compile(rf'\^?(?:{_ONE}|{_GROUP}|\|)*\$?')
#: Ways that all expressions of a setting together may try on all layers: seconds.
_MOST = 3e8
#: Settings that name layers; that says which blocks; kinds that know no exclusion, and no numbers.
_NAMES, _NUMBERS = ('target_modules', 'exclude_modules', 'modules_to_save', 'layers_pattern'), 'layers_to_transform'
_NO_EXCLUDE, _NO_NUMBERS = ('VERA', ), ('IA3', 'LN_TUNING')
#: Expressions of one setting.
MAX_EXPRESSIONS = 100


def _ways(pattern: str, longest: int) -> float:
    """How many ways a regular expression may try on a name of so many characters, infinite where that is not known."""
    if len(pattern) > 500 or not _KNOWN.fullmatch(pattern):
        return math.inf
    try:
        re.compile(pattern)
    except re.error:
        return math.inf
    # Without escapes and classes, whose characters stand for themselves.
    bare = re.sub(r'\\.|\[[^]]*\]', 'x', pattern)
    groups = re.findall(r'\(([^)]*)\)', bare)
    choices = math.prod(group.count('|') + 1 for group in (*groups, re.sub(r'\([^)]*\)', '', bare)))
    # One more of each: peft puts (.*\.)? before a pattern.
    repeated, optional = len(re.findall(r'[*+]', bare)) + 1, len(re.findall(r'(?<![*+?(])\?', bare)) + 1
    return math.comb(longest + repeated, repeated) * 2**optional * choices


def _harmless(patterns: Collection[str], names: Collection[str]) -> bool:
    """Whether all patterns can be tried on all names."""
    longest = max(map(len, names), default=0)
    return sum(_ways(pattern, longest) for pattern in patterns) * len(names) <= _MOST


def same_layer(one: str, other: str) -> bool:
    """Whether two names are of one layer: equal, or one with a prefix that the other lacks."""
    return f'.{one}'.endswith(f'.{other}') or f'.{other}'.endswith(f'.{one}')


def by_layer(folder: str, config: Mapping[str, Any], key: str, layers: Collection[str]) -> Dict[str, Any]:
    """What a setting by patterns (``rank_pattern``, ``alpha_pattern``) says of layers; the first pattern counts.

    Args:
        folder: Folder of peft.
        config: Its config.
        key: Name of the setting.
        layers: Names of layers as the folder has them.

    Returns:
        The layers that a pattern means, with its value.

    Raises:
        WeightFileError: If it is no table, or one of its patterns may take too long.
    """
    table, path = config.get(key) or {}, os.path.join(folder, CONFIG)
    if not isinstance(table, dict):
        raise WeightFileError(path, f'{key}={table!r:.60} is not a table', 'save the adapter again')
    expressions = [pattern for pattern in table if not _PLAIN.fullmatch(pattern)]
    for pattern in expressions[:MAX_EXPRESSIONS]:
        if not _harmless([pattern], layers):
            raise WeightFileError(path, f'{key} {pattern!r:.60} is an expression that is not tried on names out of a '
                                  'file', 'name the layers')
    if len(expressions) > MAX_EXPRESSIONS or not _harmless(expressions, layers):
        raise WeightFileError(path, f'{key} has too many expressions', 'name the layers')
    found: Dict[str, Any] = {}
    for layer in layers:
        for pattern, value in table.items():
            plain = _PLAIN.fullmatch(pattern)
            if same_layer(layer, pattern) if plain else re.match(rf'(.*\.)?({pattern})$', layer):
                found[layer] = value
                break
    return found


def check_settings(folder: str, config: Mapping[str, Any]) -> None:
    """Check the types of the settings that name layers.

    Raises:
        WeightFileError: Names the setting, its value and what it may be.
    """
    for key in _NAMES:
        value = config.get(key)
        names = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(name, str) for name in names):
            raise WeightFileError(os.path.join(folder, CONFIG), f'{key}={value!r:.60} names no layers',
                                  'give a list of names')
    value = config.get(_NUMBERS)
    numbers = value if isinstance(value, list) else [value]
    if value is not None and not all(type(number) is int and number >= 0 for number in numbers):
        raise WeightFileError(os.path.join(folder, CONFIG), f'{_NUMBERS}={value!r:.60} are no numbers of blocks',
                              'give a list of numbers from 0')


def left_out(config: Mapping[str, Any], layers: Collection[str], doubtful: bool = False) -> Dict[str, str]:
    """Those of the layers that peft does not adapt, with the setting that leaves each out.

    Args:
        config: Config of the folder, by :func:`check_settings`.
        layers: Names of layers as the folder has them.
        doubtful: Whether layers are left out by an expression that is not tried; by default it counts as one that
            means all, as peft saves no tensors of others.
    """
    unknown: Collection[str] = () if doubtful else layers
    kind, found = config.get('peft_type'), {}
    targets, excluded, kept = (config.get(key) for key in ('target_modules', 'exclude_modules', 'modules_to_save'))
    if excluded and kind not in _NO_EXCLUDE:
        found.update(dict.fromkeys(_meant(excluded, layers, set(layers) - set(unknown)), 'exclude_modules'))
    # What is saved whole is never adapted as well, nor is a layer inside it.
    inside = {n for n in layers for name in kept or () if f'.{name}.' in f'.{n}.'}
    found.update(dict.fromkeys(inside - set(found), 'modules_to_save'))
    if targets and (doubtful or targets != 'all-linear'):
        meant = _meant(targets, layers, unknown)
        found.update(dict.fromkeys(set(layers) - meant - set(found), 'target_modules'))
    if isinstance(targets, list) and config.get(_NUMBERS) not in (None, []) and kind not in _NO_NUMBERS:
        # A name that is given in full counts whatever its number.
        free = {n for n in layers if n not in found and n not in targets}
        found.update(dict.fromkeys(free - _numbered(config, free, unknown), _NUMBERS))
    return found


def _meant(names: Any, layers: Collection[str], unknown: Collection[str]) -> Set[str]:
    """Layers that a list of names, or of ends of names, or an expression means; ``unknown`` where it is not tried."""
    if isinstance(names, list):
        return {n for n in layers if n in names or any(n.endswith(f'.{end}') for end in names)}
    return {n for n in layers if re.fullmatch(names, n)} if _harmless([names], layers) else set(unknown)


def _numbered(config: Mapping[str, Any], layers: Collection[str], unknown: Collection[str]) -> Set[str]:
    """Layers in the blocks that ``layers_to_transform`` names: the first number behind a name, or behind one that
    ``layers_pattern`` means; ``unknown`` where that is not tried."""
    wanted, patterns = config[_NUMBERS], config.get('layers_pattern') or ()
    wanted = wanted if isinstance(wanted, list) else [wanted]
    patterns = [patterns] if isinstance(patterns, str) else patterns
    # What peft puts around each is two more repetitions.
    if not _harmless([f'.*{pattern}.*' for pattern in patterns], layers):
        return set(layers) & set(unknown)
    starts = [rf'(?:^|.*?\.){pattern}' for pattern in patterns] or [r'.*?\.[^.]*']
    chosen = set()
    for name in layers:
        found = next(filter(None, (re.match(rf'{start}\.(?P<at>\d+)\.', name) for start in starts)), None)
        # Of alternatives in a pattern one may have no number.
        if found and found['at'] and len(found['at']) < 10 and int(found['at']) in wanted:
            chosen.add(name)
    return chosen
