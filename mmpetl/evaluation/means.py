# SPDX-License-Identifier: Apache-2.0
"""Means over the tasks of a suite. A mean with a missing task has no value: it is never taken over what happens to be
there."""

from dataclasses import dataclass
from typing import Dict, Iterable, Mapping, Optional, Union

from ..datasets.tables import Suite, get_suite


@dataclass(frozen=True)
class Mean:
    """A mean over ``need`` tasks, of which ``have`` have a score; ``value`` is None unless all have."""
    value: Optional[float]
    have: int
    need: int


def mean_of(values: Iterable[Optional[float]]) -> Mean:
    """Mean of the values, without a value as soon as one is None."""
    values = list(values)
    present = [v for v in values if v is not None]
    complete = len(present) == len(values) > 0
    return Mean(sum(present) / len(present) if complete else None, len(present), len(values))


def suite_means(suite: Union[str, Suite], scores: Mapping[str, Optional[float]]) -> Dict[str, Mean]:
    """The means that papers print of a suite, labelled.

    Two conventions circulate for VTAB-1k and differ by two to five points: the mean of the 19 tasks and the mean of the
    three group means. Both are returned.

    Args:
        suite: The suite, or its name.
        scores: Score of each task in per cent; a task that is None or absent is missing.

    Returns:
        ``{label: mean}``; for VTAB-1k the groups, 'mean of 19' and 'mean of 3 groups', otherwise 'mean of N'.

    Raises:
        ValueError: If a score belongs to no task of the suite.
    """
    suite = get_suite(suite)
    stray = [name for name in scores if name not in suite.tasks]
    if stray:
        raise ValueError(f'{suite.title} has no task {stray[0]!r}')
    means: Dict[str, Mean] = {}
    for group in suite.groups:
        means[group] = mean_of(scores.get(t.name) for t in suite.tasks.values() if t.group == group)
    total = mean_of(scores.get(name) for name in suite.tasks)
    means[f'mean of {len(suite.tasks)}'] = total
    if suite.groups:
        # Counted in tasks: one missing task and seven missing ones both leave one group without a mean.
        value = mean_of(means[g].value for g in suite.groups).value
        means[f'mean of {len(suite.groups)} groups'] = Mean(value, total.have, total.need)
    return means
