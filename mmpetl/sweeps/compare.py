# SPDX-License-Identifier: Apache-2.0
"""Two methods on the same data sets and seeds: is the difference more than chance?"""

import math
import statistics
from dataclasses import dataclass
from typing import Dict, Optional, Sequence

from .report import Row


@dataclass
class Comparison:
    """The paired differences ``first - second``, in per cent points.

    Attributes:
        first, second: Names.
        pairs: Differences by '<task>, <run>'.
        mean: Their mean.
        half: Half of its 95 % confidence interval, by Student; None for fewer than two pairs.
        t_test: Two-sided p of the paired t-test; None where it is not defined.
        wilcoxon: Two-sided p of Wilcoxon's signed-rank test, exact for few pairs; None where it is not defined.
    """
    first: str
    second: str
    pairs: Dict[str, float]
    mean: float
    half: Optional[float]
    t_test: Optional[float]
    wilcoxon: Optional[float]

    def __str__(self) -> str:
        half = '' if self.half is None else f' ± {self.half:.2f} (95 %)'
        tests = [f'{name} p = {p:.3g}' for name, p in (('paired t-test', self.t_test), ('Wilcoxon', self.wilcoxon))
                 if p is not None]
        return f'{self.first} - {self.second}: {self.mean:+.2f}{half} points, {len(self.pairs)} pairs' + ''.join(
            f', {text}' for text in tests)


def interval(values: Sequence[float], level: float = 0.95) -> Optional[float]:
    """Half of the confidence interval of a mean by Student's distribution; None for fewer than two values."""
    from scipy.stats import t
    if len(values) < 2:
        return None
    return float(t.ppf((1 + level) / 2, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def compare(first: Row, second: Row) -> Comparison:
    """Compare two rows over the (task, seed) pairs that both have.

    Pairs of one task share its data, so the tests take them for more independent than they are.

    Raises:
        ValueError: If the rows are of different suites or share no run.
    """
    from scipy.stats import ttest_1samp, wilcoxon
    if first.suite != second.suite:
        raise ValueError(f'{first.name} and {second.name} are of different suites: {first.suite}, {second.suite}; '
                         'name two of one suite')
    pairs = {f'{task}, {run}': cell.by_run[run] - other
             for task, cell in first.cells.items() if task in second.cells
             for run, other in second.cells[task].by_run.items() if run in cell.by_run}
    if not pairs:
        raise ValueError(f'{first.name} and {second.name} share no finished run: the same tasks and '
                         'seeds are compared; finish them by mmpetl sweep')
    differences = list(pairs.values())
    moved = len(set(differences)) > 1  # without spread the t-test divides by 0
    return Comparison(first.name, second.name, pairs, statistics.fmean(differences), interval(differences),
                      float(ttest_1samp(differences, 0).pvalue) if moved else None,
                      float(wilcoxon(differences).pvalue) if moved and any(differences) else None)
