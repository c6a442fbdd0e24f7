# SPDX-License-Identifier: Apache-2.0
"""Cut a data set into training, validation and test: stratified, seeded, what belongs together kept together."""

import random
from collections import Counter
from typing import Dict, List, Sequence, Tuple

PARTS = ('train', 'val', 'test')


def shares(count: int, val: float, test: float) -> Tuple[int, int, int]:
    """How many of ``count`` files of a class go to training, validation and test.

    Nothing is held out of one or two files; of three or four, one is tested and none validates.

    Args:
        count: Files of the class.
        val: Share for validation, 0..1.
        test: Share for testing, 0..1.
    """
    tested = max(1, round(test * count)) if test and count >= 3 else 0
    validated = max(1, round(val * count)) if val and count >= 5 else 0
    while tested + validated >= count and count:
        if validated:
            validated -= 1
        else:
            tested -= 1
    return count - tested - validated, validated, tested


def split(labels: Sequence[int], groups: Sequence[str], val: float = 0.2, test: float = 0.2,
          seed: int = 0) -> List[str]:
    """A part, 'train', 'val' or 'test', for every file.

    Groups are dealt out in random order, large ones first; each goes where its classes lack most. With single files
    every class gets exactly its shares (:func:`shares`).

    Args:
        labels: Class of each file.
        groups: Files of one group stay together; '' for a file of its own.
        val: Share of each class for validation.
        test: Share of each class for testing.
        seed: Of the order in which groups are dealt out.

    Raises:
        ValueError: If the shares leave nothing to train on.
    """
    if not (val >= 0 and test >= 0 and val + test < 1):  # which nan is not
        raise ValueError(f'--val {val:g} and --test {test:g} must be at least 0 and leave something to train on')
    together: Dict[str, List[int]] = {}
    for position, group in enumerate(groups):
        together.setdefault(f'group {group}' if group else f'file {position}', []).append(position)
    units = list(together.values())
    random.Random(seed).shuffle(units)
    units.sort(key=len, reverse=True)  # stable: random among equals
    counts = Counter(labels)
    lacking = {(part, label): float(share) for label, count in counts.items()
               for part, share in zip(PARTS, shares(count, val, test))}
    parts = [''] * len(labels)
    trained = set()
    for unit in units:
        need = {part: sum(lacking[part, labels[i]] / counts[labels[i]] for i in unit) for part in PARTS}
        new = any(labels[i] not in trained for i in unit)
        # among equals: training while it has nothing of a class, then what is held out
        order = ('train', 'test', 'val') if new else ('test', 'val', 'train')
        chosen = max(order, key=lambda part: need[part])
        for i in unit:
            parts[i] = chosen
            if chosen == 'train':
                trained.add(labels[i])
            lacking[chosen, labels[i]] -= 1
    return parts
