# SPDX-License-Identifier: Apache-2.0
"""What sweeps have reached, as a table and as a plot.

A cell is a mean over seeds, complete or marked; means over tasks exist only where every task is complete.
"""

import logging
import os
import statistics
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from mmengine.logging import print_log

from ..costs.plan import plan as costs
from ..datasets.tables import get_suite, get_task
from ..evaluation.efficiency import pe_score, ppt_score
from ..evaluation.means import Mean, mean_of, suite_means
from ..training.tasks import apply_task
from .families import OTHER, family_of
from .plan import PLAN_FILE, read_plan, units
from .search import as_dict, describe_params
from .trial import OK, Result, Trial


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
        by_run: Score of every finished final run by what tells it from its sisters, for example 'seed=0': what pairs
            of methods are compared by.
        folders: Folder of each of them, relative to the sweep's.
        run_seconds, run_cpu_seconds: Mean time of a finished final run, on the clock and of the processor.
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
    by_run: Dict[str, float] = field(default_factory=dict)
    folders: Dict[str, str] = field(default_factory=dict)
    run_seconds: Optional[float] = None
    run_cpu_seconds: Optional[float] = None

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
        family: What kind of method it is, see :mod:`mmpetl.sweeps.families`.
        folder: The sweep's folder.
    """
    name: str
    suite: str
    cells: Dict[str, Cell]
    tested_often: bool = False
    computed_bytes: Optional[int] = None
    family: str = OTHER
    folder: str = ''

    def means(self, best: bool = False) -> Dict[str, Mean]:
        """Means over the suite's tasks, by label; ``best`` takes the epochs chosen on test data."""
        scores = {}
        for task, cell in self.cells.items():
            scores[task] = None if cell.mean is None else statistics.fmean(cell.best_scores) if best else cell.mean
        return suite_means(self.suite, scores)

    def average(self, name: str, tasks: Iterable[str]) -> Optional[float]:
        """Mean over these tasks of a number of their cells, for example 'mean' or 'params'; None unless all have it."""
        return mean_of(getattr(self.cells[t], name) if t in self.cells else None for t in tasks).value

    def per_run(self, tasks: Sequence[str]) -> Optional[List[float]]:
        """Means over these tasks of the runs of one seed each; None unless every task has the same complete set."""
        cells = [self.cells.get(task) for task in tasks]
        if not cells or any(cell is None or cell.mean is None or set(cell.by_run) != set(cells[0].by_run)
                            for cell in cells):  # type: ignore[union-attr]
            return None
        return [statistics.fmean(cell.by_run[run] for cell in cells if cell) for run in cells[0].by_run]

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
            raise FileNotFoundError(f'{folder} holds no sweep ({PLAN_FILE} is missing): name the folder of one')
        found += [h for h in here if h not in found]
    return found


def read_row(work_dir: str, name: Optional[str] = None) -> Row:
    """The row of one sweep.

    Args:
        work_dir: Folder of the sweep.
        name: Name in the table; default that of the config.
    """
    plan = read_plan(work_dir)
    row = Row(name or plan['name'], plan['suite'], {}, folder=work_dir)
    for unit in units(plan, work_dir):
        cell = row.cells.setdefault(unit.task, Cell())
        cell.wanted += len(plan['seeds'])
        cell.seconds += sum(result.seconds for result in map(unit.result, unit.all_trials()) if result is not None)
        chosen = describe_params(as_dict(unit.best() or ())) if unit.searching() else ''
        cell.chosen = '; '.join(filter(None, [cell.chosen, chosen]))
        results = [(trial, unit.result(trial)) for trial in unit.finals()]
        for trial, result in results:
            if result is not None:
                _add(cell, trial, result)
                row.tested_often |= result.status == OK and len(result.epochs) > 1
        if unit.searching() and unit.best() is None and not unit.waiting():
            cell.errors.append(f'{unit.task} {unit.fold or ""}: every search run failed')
    _add_config(row, plan)
    return row


def _add(cell: Cell, trial: Trial, result: Result) -> None:
    """Put a final run into its cell."""
    if result.status != OK:
        cell.errors.append(f'{trial.folder()}: {result.error}')
        return
    assert result.score is not None and result.best_score is not None  # a run that is OK has both
    before = len(cell.scores)
    cell.scores.append(result.score)
    cell.best_scores.append(result.best_score)
    run = describe_params({**trial.fold, 'seed': trial.seed}, ', ')
    cell.by_run[run], cell.folders[run] = result.score, trial.folder()
    cell.params, cell.head_params = result.params, result.head_params
    if result.peak_bytes is not None:
        cell.peak_bytes = max(cell.peak_bytes or 0, result.peak_bytes)
    cell.run_seconds = _running_mean(cell.run_seconds, result.seconds, before)
    cell.run_cpu_seconds = _running_mean(cell.run_cpu_seconds, result.cpu_seconds, before)


def _running_mean(mean: Optional[float], value: Optional[float], count: int) -> Optional[float]:
    """Mean of ``count`` values and one more; None as soon as one is unknown."""
    if value is None or (count and mean is None):
        return None
    return ((mean or 0.) * count + value) / (count + 1)


def _add_config(row: Row, plan: Mapping[str, Any]) -> None:
    """What follows from the sweep's config: the family, and the computed memory where none was measured."""
    try:
        row.family = family_of(sweep_config(plan))
    except Exception:  # named below, where the memory misses it too
        row.family = OTHER
    if all(cell.peak_bytes is None for cell in row.cells.values()):
        try:
            row.computed_bytes = computed_bytes(plan)
        except Exception as error:  # the scores are there all the same, whatever became of the config
            print_log(
                f'{row.name}: training memory is left out, because {plan["config"]} gives no model now: '
                f'{type(error).__name__}: '
                f'{(str(error).splitlines() or [""])[0]}', 'current', logging.WARNING)


def sweep_config(plan: Mapping[str, Any]) -> Any:
    """The config of a sweep, with the options that all its runs have."""
    from mmengine.config import Config

    cfg = Config.fromfile(plan['config'], format_python_code=False)
    cfg.merge_from_dict(dict(plan['cfg_options']))
    return cfg


def computed_bytes(plan: Mapping[str, Any]) -> Optional[int]:
    """Bytes of weights, kept activations, gradients and optimizer in a training step of a sweep's first task; None if
    nothing trains.

    Args:
        plan: Contents of the sweep's ``sweep.json``, with the absolute path of its config under 'config'.
    """
    cfg = sweep_config(plan)
    if not cfg.get('train_dataloader'):
        return None
    cfg.task.update(suite=plan['suite'], name=plan['tasks'][0])
    return costs(apply_task(cfg, plan['cfg_options'])).memory_bytes


def read_rows(folders: Sequence[str]) -> List[Row]:
    """Rows of all sweeps in and below the folders; equal names get the folder's name added."""
    sweeps = find_sweeps(folders)
    names = [read_plan(s)['name'] for s in sweeps]
    return [read_row(s, f'{n} ({os.path.basename(s)})' if names.count(n) > 1 else n) for s, n in zip(sweeps, names)]


def only(row: Row, tasks: Sequence[str]) -> Row:
    """The row on these tasks of its suite alone.

    Raises:
        ValueError: If the suite has no such task.
    """
    for task in tasks:
        get_task(row.suite, task)
    return replace(row, cells={task: cell for task, cell in row.cells.items() if task in tasks})


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


def time_of(rows: Sequence[Row]) -> Tuple[str, List[Optional[float]]]:
    """Label and seconds of a final run of each row: of the processor where every row knows them, else on the clock."""
    tasks = tasks_of(rows)
    cpu = [row.average('run_cpu_seconds', tasks) for row in rows]
    if all(value is not None for value, row in zip(cpu, rows) if row.average('mean', tasks) is not None):
        return 'processor time of a run, s (mean)', cpu
    return 'time of a run, s (mean)', [row.average('run_seconds', tasks) for row in rows]


def mean_label(rows: Sequence[Row]) -> str:
    """What the mean over :func:`tasks_of` is called: a part of the suite must not be taken for its mean."""
    suite, count = get_suite(rows[0].suite), len(tasks_of(rows))
    if count == len(suite.tasks):
        return f'mean of {count}'
    return f"mean of {f'these {count} tasks' if count > 1 else 'this task'} (not {suite.title}'s)"


def mean_names(rows: Sequence[Row]) -> List[str]:
    """Labels of the suite's means that a table shows: no group of which no sweep covers a task."""
    suite, tasks = get_suite(rows[0].suite), tasks_of(rows)
    covered = {suite.tasks[task].group for task in tasks}
    return [label for label in rows[0].means() if label not in suite.groups or label in covered]


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
    for label in mean_names(rows):
        lines.append([label, *[mean_text(row.means()[label]) for row in rows]])
    if any(row.tested_often for row in rows):
        label = mean_names(rows)[-1]
        lines.append([f'{label}, best epoch SELECTED ON TEST',
                      *[mean_text(row.means(best=True)[label]) if row.tested_often else MISSING for row in rows]])
    lines.append(['trainable, head included (mean)', *[_number(row.average('params', tasks), ',.0f') for row in rows]])
    lines.append(['head (mean)', *[_number(row.average('head_params', tasks), ',.0f') for row in rows]])
    label, memory = memory_of(rows)
    lines.append([label, *[_number(None if m is None else m / 2**30, '.2f') for m in memory]])
    label, seconds = time_of(rows)
    lines.append([label, *[_number(s, '.0f') for s in seconds]])
    for label in rows[0].efficiency(tasks):
        lines.append([label, *[_number(row.efficiency(tasks)[label], '.2f') for row in rows]])
    return lines
