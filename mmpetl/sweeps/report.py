# SPDX-License-Identifier: Apache-2.0
"""What sweeps have reached, as a table and as a plot.

A cell is a mean over seeds, complete or marked; means over tasks exist only where every task is complete.
"""

import logging
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from mmengine.logging import print_log

from ..costs.plan import plan as costs
from ..datasets.tables import get_suite
from ..evaluation.efficiency import pe_score, ppt_score
from ..evaluation.means import Mean, mean_of, suite_means
from ..training.tasks import apply_task
from .plan import PLAN_FILE, read_plan, units
from .search import as_dict, describe_params
from .trial import OK


@dataclass
class Cell:
    """One method on one task.

    Attributes:
        scores: Scores of the last epoch of the finished final runs, in per cent.
        best_scores: Their best scores over all tested epochs; chosen on test data.
        wanted: Final runs that the plan asks for.
        params: Trainable parameters, head included.
        head_params: Those of the head.
        peak_bytes: Peak device memory.
        errors: What failed.
        chosen: What the search chose, for example 'lr=0.003 weight_decay=0.01'; several few-shot subsets are set apart
            by '; '.
        seconds: Time of all its runs so far, search included.
    """
    scores: List[float] = field(default_factory=list)
    best_scores: List[float] = field(default_factory=list)
    wanted: int = 0
    params: Optional[int] = None
    head_params: Optional[int] = None
    peak_bytes: Optional[int] = None
    errors: List[str] = field(default_factory=list)
    chosen: str = ''
    seconds: float = 0.

    @property
    def mean(self) -> Optional[float]:
        """Mean over the seeds, None unless all of them are there."""
        return statistics.fmean(self.scores) if self.scores and len(self.scores) == self.wanted else None

    @property
    def spread(self) -> Optional[float]:
        """Sample standard deviation over the seeds, None for fewer than two."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None


@dataclass
class Row:
    """One method: a sweep.

    Attributes:
        name: Name of the sweep's config.
        suite: Its suite.
        cells: Cells by task, for the tasks of the sweep.
        tested_often: Whether runs were tested more than once, so that a best epoch can be chosen on test data.
        computed_bytes: Memory of a training step as ``mmpetl plan`` computes it, for the first task; None where it was
            measured.
    """
    name: str
    suite: str
    cells: Dict[str, Cell]
    tested_often: bool = False
    computed_bytes: Optional[int] = None

    def means(self, best: bool = False) -> Dict[str, Mean]:
        """Means over the suite's tasks, by label; ``best`` takes the epochs chosen on test data."""
        scores = {}
        for task, cell in self.cells.items():
            scores[task] = None if cell.mean is None else statistics.fmean(cell.best_scores) if best else cell.mean
        return suite_means(self.suite, scores)

    def average(self, name: str, tasks: Iterable[str]) -> Optional[float]:
        """Mean over these tasks of a number of their cells, for example 'mean' or 'params'; None unless all have it."""
        return mean_of(getattr(self.cells[t], name) if t in self.cells else None for t in tasks).value

    def efficiency(self, tasks: Sequence[str]) -> Dict[str, Optional[float]]:
        """PE (trainable parameters with heads) and PPT (without) over these tasks, in per cent; None where a task is
        missing."""
        score, params, heads = (self.average(name, tasks) for name in ('mean', 'params', 'head_params'))
        if score is None or params is None or heads is None:
            return {'PE (1e8)': None, 'PPT (1e7)': None}
        return {'PE (1e8)': pe_score(score, params), 'PPT (1e7)': ppt_score(score, params - heads)}


# -- reading ----------------------------------------------------------------------------------------------------------


def find_sweeps(folders: Sequence[str]) -> List[str]:
    """Folders of sweeps in and below the given ones.

    Raises:
        FileNotFoundError: If one holds none.
    """
    found: List[str] = []
    for folder in folders:
        here = sorted(str(p.parent) for p in Path(folder).glob(f'**/{PLAN_FILE}'))
        if not here:
            raise FileNotFoundError(f'{folder} holds no sweep ({PLAN_FILE} is missing)')
        found += [h for h in here if h not in found]
    return found


def read_row(work_dir: str, name: Optional[str] = None) -> Row:
    """The row of one sweep.

    Args:
        work_dir: Folder of the sweep.
        name: Name in the table; default that of the config.
    """
    plan = read_plan(work_dir)
    row = Row(name or plan['name'], plan['suite'], {})
    for unit in units(plan, work_dir):
        cell = row.cells.setdefault(unit.task, Cell())
        cell.wanted += len(plan['seeds'])
        cell.seconds += sum(result.seconds for result in map(unit.result, unit.all_trials()) if result is not None)
        chosen = describe_params(as_dict(unit.best() or ())) if unit.searching() else ''
        cell.chosen = '; '.join(filter(None, [cell.chosen, chosen]))
        for trial in unit.finals():
            result = unit.result(trial)
            if result is None:
                continue
            if result.status != OK:
                cell.errors.append(f'{trial.folder()}: {result.error}')
                continue
            assert result.score is not None and result.best_score is not None  # a run that is OK has both
            cell.scores.append(result.score)
            cell.best_scores.append(result.best_score)
            cell.params, cell.head_params = result.params, result.head_params
            cell.peak_bytes = max(cell.peak_bytes or 0,
                                  result.peak_bytes) if result.peak_bytes is not None else cell.peak_bytes
            row.tested_often |= len(result.epochs) > 1
        if unit.searching() and unit.best() is None and not unit.waiting():
            cell.errors.append(f'{unit.task} {unit.fold or ""}: every search run failed')
    if all(cell.peak_bytes is None for cell in row.cells.values()):
        try:
            row.computed_bytes = computed_bytes(plan)
        except Exception as error:  # the scores are there all the same, whatever became of the config
            print_log(
                f'{row.name}: training memory is left out, because {plan["config"]} gives no model now: '
                f'{type(error).__name__}: '
                f'{(str(error).splitlines() or [""])[0]}', 'current', logging.WARNING)
    return row


def computed_bytes(plan: Mapping[str, Any]) -> Optional[int]:
    """Bytes of weights, kept activations, gradients and optimizer in a training step of a sweep's first task; None if
    nothing trains.

    Args:
        plan: Contents of the sweep's ``sweep.json``, with the absolute path of its config under 'config'.
    """
    from mmengine.config import Config

    cfg = Config.fromfile(plan['config'], format_python_code=False)
    if not cfg.get('train_dataloader'):
        return None
    cfg.merge_from_dict(dict(plan['cfg_options']))
    cfg.task.update(suite=plan['suite'], name=plan['tasks'][0])
    return costs(apply_task(cfg, plan['cfg_options'])).memory_bytes


def read_rows(folders: Sequence[str]) -> List[Row]:
    """Rows of all sweeps in and below the folders; equal names get the folder's name added."""
    sweeps = find_sweeps(folders)
    names = [read_plan(s)['name'] for s in sweeps]
    return [read_row(s, f'{n} ({os.path.basename(s)})' if names.count(n) > 1 else n) for s, n in zip(sweeps, names)]


# -- the table as plain text cells ------------------------------------------------------------------------------------


MISSING = '--'


def cell_text(cell: Optional[Cell], pm: str = '±') -> str:
    """'71.42 ± 0.31', or what is missing: '--', or '70.10 [2/5]' with two of five seeds."""
    if cell is None or not cell.scores:
        return MISSING
    text = f'{statistics.fmean(cell.scores):.2f}'
    if cell.mean is None:
        return f'{text} [{len(cell.scores)}/{cell.wanted}]'
    return text if cell.spread is None else f'{text} {pm} {cell.spread:.2f}'


def mean_text(mean: Mean) -> str:
    """'71.42', or '-- [17/19]' where tasks are missing."""
    return f'{mean.value:.2f}' if mean.value is not None else f'{MISSING} [{mean.have}/{mean.need}]'


def _number(value: Optional[float], form: str) -> str:
    return MISSING if value is None else format(value, form)


def tasks_of(rows: Sequence[Row]) -> List[str]:
    """Tasks that any of the sweeps covers, in the order of the suite."""
    return [t for t in get_suite(rows[0].suite).tasks if any(t in row.cells for row in rows)]


def memory_of(rows: Sequence[Row]) -> Tuple[str, List[Optional[float]]]:
    """Label and bytes of each row: the peak that was measured on GPUs, or the computed memory where nothing was
    measured."""
    tasks = tasks_of(rows)
    peaks = [row.average('peak_bytes', tasks) for row in rows]
    if any(peak is not None for peak in peaks):
        return 'peak memory, GiB (mean)', peaks
    return 'training memory, GiB (computed)', [row.computed_bytes for row in rows]


def mean_label(rows: Sequence[Row]) -> str:
    """What the mean over :func:`tasks_of` is called: a part of the suite must not be taken for its mean."""
    suite, count = get_suite(rows[0].suite), len(tasks_of(rows))
    return f'mean of {count}' if count == len(suite.tasks) else f"mean of these {count} tasks (not {suite.title}'s)"


def table(rows: Sequence[Row], pm: str = '±') -> List[List[str]]:
    """Header and rows of one suite's table; one line per task that a sweep covers and per mean, one column per method.

    Raises:
        ValueError: If the rows are of several suites.
    """
    suite = get_suite(rows[0].suite)
    if any(row.suite != suite.name for row in rows):
        raise ValueError('one table holds one suite')
    lines = [[suite.title, *[row.name for row in rows]]]
    tasks = tasks_of(rows)
    for task in (suite.tasks[t] for t in tasks):
        label = f'{task.name} ({task.group})' if task.group else task.name
        lines.append([label, *[cell_text(row.cells.get(task.name), pm) for row in rows]])
    if len(tasks) < len(suite.tasks):
        lines.append([mean_label(rows), *[_number(row.average('mean', tasks), '.2f') for row in rows]])
    for label in rows[0].means():
        lines.append([label, *[mean_text(row.means()[label]) for row in rows]])
    if any(row.tested_often for row in rows):
        label = list(rows[0].means())[-1]
        lines.append([f'{label}, best epoch SELECTED ON TEST',
                      *[mean_text(row.means(best=True)[label]) if row.tested_often else MISSING for row in rows]])
    lines.append(['trainable, head included (mean)', *[_number(row.average('params', tasks), ',.0f') for row in rows]])
    lines.append(['head (mean)', *[_number(row.average('head_params', tasks), ',.0f') for row in rows]])
    label, memory = memory_of(rows)
    lines.append([label, *[_number(None if m is None else m / 2**30, '.2f') for m in memory]])
    for label in rows[0].efficiency(tasks):
        lines.append([label, *[_number(row.efficiency(tasks)[label], '.2f') for row in rows]])
    return lines
