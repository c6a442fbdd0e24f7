# SPDX-License-Identifier: Apache-2.0
"""Which layers a setting of a peft folder means: names, ends of names, and regular expressions.

An expression out of a file may be made to run for years, so only those run here whose work is known beforehand: single
characters and classes, repeated or not, and alternatives that are not repeated. k repetitions can share out a name of
n characters in C(n + k, k) ways.
"""

import math
import os
import re
from typing import Any, Collection, Dict, List, Mapping, Set

from ..weights.errors import WeightFileError

CONFIG = 'adapter_config.json'
#: A name, or the end of one.
_PLAIN = re.compile(r'[\w.]*')
_ONE = r'(?:\\[dDwWsS.\-]|\[\^?[\w.\-]+\]|[\w.\-])(?:[*+?]\??)?'
_GROUP = rf'\((?:\?:)?(?:{_ONE})*(?:\|(?:{_ONE})*)*\)\??'
_KNOWN = re.compile(rf'\^?(?:{_ONE}|{_GROUP}|\|)*\$?')
#: Ways that all expressions of a setting together may try on all layers: seconds.
_MOST = 3e8
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


def targeted(config: Mapping[str, Any], layers: Collection[str]) -> Set[str]:
    """Those of the layers that ``target_modules`` means and ``exclude_modules`` does not.

    An expression that is not tried counts as one that means all: peft saves no tensors of others.

    Args:
        config: Config of the folder.
        layers: Names of layers as the folder has them.
    """
    targets, excluded = config.get('target_modules'), config.get('exclude_modules')
    chosen = set(layers)
    if isinstance(targets, list):
        chosen = {n for n in chosen if n in targets or _ends(n, targets)}
    elif isinstance(targets, str) and targets != 'all-linear' and _harmless([targets], layers):
        chosen = {n for n in chosen if re.fullmatch(targets, n)}
    if isinstance(excluded, list):
        chosen -= {n for n in chosen if n in excluded or _ends(n, excluded)}
    elif isinstance(excluded, str) and _harmless([excluded], layers):
        chosen -= {n for n in chosen if re.fullmatch(excluded, n)}
    return chosen


def _ends(name: str, ends: List[Any]) -> bool:
    return any(name.endswith(f'.{end}') for end in ends)
