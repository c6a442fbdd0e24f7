# SPDX-License-Identifier: Apache-2.0
"""How docs/numbers.md says what benchmark_methods.py measured: means, intervals, pairs."""

import itertools
import statistics
from typing import Any, Dict, List, Optional, Sequence, Tuple

from mmpetl.sweeps.compare import interval


def shown(cell: Optional[Dict[str, Any]]) -> str:
    """Mean of the runs of a row and half of its interval, and how many runs if not three; nothing where there are
    none."""
    scores = list(cell['scores'].values()) if cell else []
    few = {0: '', 1: ' (1 seed)', 2: ' (2 seeds)', 3: ''}[len(scores)]
    half = interval(scores)
    bound = '' if half is None else f' ± {half:.1f}'
    return f'{statistics.fmean(scores):.1f}{bound}{few}' if scores else ''


def differences(data: Dict[str, Any], part: str, first: str, second: str) -> List[float]:
    """First minus second for every run that both have, over all data sets."""
    a, b = (data[part].get(name, {'tasks': {}})['tasks'] for name in (first, second))
    return [score - b[task]['scores'][run] for task in a if task in b for run, score in a[task]['scores'].items()
            if run in b[task]['scores']]


def listed(names: Sequence[str]) -> str:
    """Names with their number; names have commas of their own."""
    return f'{len(names)}: {"; ".join(names)}' if names else 'none'


def above_the_probe(cells: Dict[str, Dict[str, Any]]) -> Tuple[List[str], List[str], float]:
    """Rows whose mean is above the linear probe's, best first; those whose whole interval is above its; and which part
    of all pairs of intervals overlaps. A row of one seed has no interval."""
    runs = {name: list(cell['scores'].values()) for name, cell in cells.items()}
    means = {name: statistics.fmean(own) for name, own in runs.items()}
    halves = {name: half for name, half in ((name, interval(own)) for name, own in runs.items()) if half is not None}
    above = [name for name in sorted(means, key=lambda n: -means[n]) if means[name] > means['Linear']]
    high = means['Linear'] + halves['Linear']
    clear = [name for name in above if name in halves and means[name] - halves[name] > high]
    pairs = list(itertools.combinations(halves, 2))
    overlap = sum(abs(means[a] - means[b]) <= halves[a] + halves[b] for a, b in pairs)
    return above, clear, overlap / len(pairs)


def errors(runs: Dict[str, List[float]], names: Sequence[str]) -> List[float]:
    """Standard errors of single accuracies by the number of test images, in points."""
    return [(runs[name][0] * (100 - runs[name][0]) / 500)**.5 for name in names]
