# SPDX-License-Identifier: Apache-2.0
"""The plan of a sweep, and what there is to run next. All state is on disk: it follows from the plan and the result
files alone."""

import copy
import hashlib
import itertools
import os
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple

from ..datasets.tables import get_suite, get_task
from ..names import plain_name
from ..sites import nearest
from ..training.check import check_config
from ..training.config import load_config
from ..training.options import merge_options
from ..training.tasks import prepare_suite
from ..weights.io import atomic_write, write_json
from ..weights.reading import read_json
from .search import ALIASES, Params, Scores, Search, as_dict, build_search, diverges
from .trial import SKIPPED, Result, Trial, check_search_epochs, read_result, write_result

PLAN_FILE = 'sweep.json'
#: A sweep as its file holds it.
SweepPlan = Dict[str, Any]


# -- the plan ---------------------------------------------------------------------------------------------------------


def _check_grid(cfg: Any, grid: Optional[Mapping[str, Sequence[Any]]], source: str) -> None:
    """Every value of a grid has a place in the config and suits it.

    Raises:
        ValueError: Naming the key and the value.
    """
    for short, values in (grid or {}).items():
        key = ALIASES.get(short, short)
        for value in values:
            trial = copy.deepcopy(cfg)
            merge_options(trial, {key: value}, '--grid')
            check_config(trial, source)


def make_plan(config: str, work_dir: str, suite: str, tasks: Optional[List[str]] = None, root: Optional[str] = None,
              cfg_options: Optional[Mapping[str, Any]] = None, **changes: Any) -> SweepPlan:
    """Write the sweep's config and plan into its folder, or check that the plan there is the same.

    Args:
        config: Config file.
        work_dir: Folder of the sweep.
        suite: Name of the suite.
        tasks: Tasks to run; None for all. More tasks may be asked for later.
        root: Folder of the data.
        cfg_options: Config options for every trial.
        **changes: Entries that replace those of ``cfg.sweep``: grid, search, lrs, select, seeds, shot_seeds, shots,
            search_epochs, test_every, keep_checkpoints.

    Returns:
        The plan.

    Raises:
        ValueError: If a name or an entry is unknown, or the folder holds another sweep.
    """
    from mmengine.config import Config

    spec = get_suite(suite)
    for task in tasks or ():
        get_task(spec, task)
    cfg = load_config(config)
    merge_options(cfg, cfg_options)
    check_config(cfg, config)
    prepare_suite(cfg, spec)
    _check_grid(cfg, changes.get('grid'), config)
    own = dict(cfg.pop('sweep', None) or {})
    entries = {**own, **{k: v for k, v in changes.items() if v is not None}}
    known = ('grid', 'search', 'lrs', 'select', 'seeds', 'shot_seeds', 'shots', 'search_epochs', 'test_every',
             'keep_checkpoints')
    for key in entries:
        if key not in known:
            raise ValueError(f'sweep.{key} is no option' + nearest(key, known))
    text = Config(cfg.to_dict()).pretty_text
    plan: SweepPlan = dict(
        name=Path(config).stem,
        suite=spec.name,
        root=os.path.abspath(os.path.expanduser(root)) if root else None,
        cfg_options=dict(cfg_options or {}),
        digest=hashlib.sha256(text.encode()).hexdigest(),
        **_filled(entries, spec.form))
    build_search(plan)
    _check_entries(plan, tasks, changes)
    if entries.get('search_epochs'):
        check_search_epochs(cfg, entries['search_epochs'])
    _check_test_every(plan['test_every'], (cfg.get('train_cfg') or {}).get('max_epochs'), changes)
    for key in ('shots', 'shot_seeds'):
        if key in entries and spec.form != 'elevater' and (key in changes or key == 'shots'):
            raise ValueError(f'sweep.{key}={entries[key]}: {spec.title} has no few-shot subsets: leave it out')
    if 'shots' in entries:
        plan['cfg_options']['task.shots'] = entries['shots']
    _store(plan, text, work_dir, tasks)
    return read_plan(work_dir)


def _check_entries(plan: SweepPlan, tasks: Optional[Sequence[str]], changes: Mapping[str, Any]) -> None:
    """Refuse what would run twice under one name, and options that a run sets itself.

    Raises:
        ValueError: Naming the option, or the entry of the config.
    """
    def said(key: str) -> str:
        return f'--{key.replace("_", "-")} ' if changes.get(key) is not None else f'sweep.{key}='

    for key in ('seeds', 'shot_seeds'):
        wrong = [s for s in plan[key] or () if isinstance(s, bool) or not isinstance(s, int) or not 0 <= s < 2**32]
        if wrong or plan[key] == []:
            raise ValueError(f'{said(key)}{wrong or []!r:.80}: give whole numbers from 0 to 4294967295')
    listed = [('--tasks ', tasks), *((said(key), plan[key]) for key in ('seeds', 'shot_seeds')),
              *((f'{said("grid")}{key}=', values) for key, values in plan['grid'].items())]
    for what, values in listed:
        twice = next((v for number, v in enumerate(values or ()) if v in values[:number]), None)
        if twice is not None:
            raise ValueError(f'{what}{" ".join(map(str, values)):.80}: {twice!r:.80} is there twice, name it once')
    own = dict.fromkeys(plan['grid'], '--grid') | {
        'task.name': '--tasks', 'randomness.seed': '--seeds', 'work_dir': '--work-dir'}
    for key in plan['cfg_options']:
        if key in own:
            raise ValueError(f'--cfg-options {key} has no effect, as every run gets its own: give it by {own[key]} '
                             'alone')


def _check_test_every(every: Any, epochs: Optional[int], changes: Mapping[str, Any]) -> None:
    """Refuse a distance of tests that no final run is long enough for.

    Raises:
        ValueError: Naming the option, or the entry of the config.
    """
    said = '--test-every ' if changes.get('test_every') is not None else 'sweep.test_every='
    if every is None:
        return
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f'{said}{every!r:.80}: give a whole number of epochs >= 1')
    if epochs is None:
        raise ValueError(f'{said}{every}: this config does not train by epochs: leave it out')
    if every > epochs:
        raise ValueError(f'{said}{every}: a run has {epochs} epochs and would not be tested before its end: give 1 to '
                         f'{epochs}')


def _filled(entries: Mapping[str, Any], form: str) -> Dict[str, Any]:
    grid = {ALIASES.get(k, k): list(v) for k, v in dict(entries.get('grid') or {}).items()}
    search = entries.get('search', 'grid')
    select = entries.get('select', 'best' if search == 'coarse_to_fine' else 'last')
    if select not in ('last', 'best'):
        raise ValueError(
            f"sweep.select={select!r}: choose 'last' (score of the last epoch) or 'best' (of the best validated epoch)")
    return dict(search=search, grid=grid, lrs=entries.get('lrs'), select=select, seeds=list(entries.get('seeds', [0])),
                shot_seeds=list(entries.get('shot_seeds', [0])) if form == 'elevater' else None,
                search_epochs=entries.get('search_epochs'), test_every=entries.get('test_every'),
                keep_checkpoints=bool(entries.get('keep_checkpoints', False)))


def _store(plan: SweepPlan, text: str, work_dir: str, tasks: Optional[List[str]]) -> None:
    path = os.path.join(work_dir, PLAN_FILE)
    if os.path.isfile(path):
        old = read_plan(work_dir)
        differ = [k for k in plan if plan[k] != old.get(k)]
        if differ:
            what = 'config' if 'digest' in differ else differ[0]
            raise ValueError(
                f'{work_dir} holds another sweep (its {what} differs): choose another --work-dir, or delete the folder')
        every = list(get_suite(plan['suite']).tasks)
        plan['tasks'] = sorted({*old['tasks'], *(tasks or every)}, key=every.index)
        if plan['tasks'] != old['tasks']:
            write_json(path, plan)
        return
    plan['tasks'] = list(tasks or get_suite(plan['suite']).tasks)
    atomic_write(os.path.join(work_dir, 'config.py'), partial(write_text, text))
    write_json(path, plan)


def write_text(text: str, file: BinaryIO) -> None:
    """Write text into an open binary file, for :func:`mmpetl.weights.io.atomic_write`."""
    file.write(text.encode())


def read_plan(work_dir: str) -> SweepPlan:
    """The plan of a sweep's folder, with the absolute path of its config under 'config'.

    Raises:
        FileNotFoundError: If the folder holds no sweep.
    """
    path = os.path.join(work_dir, PLAN_FILE)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{work_dir} holds no sweep ({PLAN_FILE} is missing): name the folder of one')
    plan = _checked_plan(read_json(path), path)
    plan['config'] = os.path.abspath(os.path.join(work_dir, 'config.py'))
    return plan


def _checked_plan(plan: Any, path: str) -> SweepPlan:
    """The contents of a plan file, if they are those of a plan; its tasks and folds become names of folders."""
    kinds = dict(name=str, suite=str, tasks=list, seeds=list, cfg_options=dict, select=str, search=str, grid=dict)
    whole = dict(shot_seeds=(list, type(None)), root=(str, type(None)))
    if not isinstance(plan, dict):
        raise ValueError(f'{path} is not the plan of a sweep: name the folder of one, or begin it anew by mmpetl sweep')
    for key, kind in {**kinds, **whole}.items():
        if not isinstance(plan.get(key), kind):  # type: ignore[arg-type]
            raise ValueError(f'{path} is not the plan of a sweep: {key!r} is a {type(plan.get(key)).__name__}: begin '
                             'the sweep anew by mmpetl sweep')
    known = get_suite(plan['suite']).tasks
    if not plan['tasks']:
        raise ValueError(f'{path} names no task: begin the sweep anew by mmpetl sweep')
    for task in plan['tasks']:
        if not isinstance(task, str) or task not in known:
            raise ValueError(f'{path}: the suite has no task {task!r:.100}: begin the sweep anew by mmpetl sweep')
        plain_name(task, f'{path}: task')
    for key in ('seeds', 'shot_seeds'):
        if plan[key] == [] or not all(type(seed) is int for seed in plan[key] or ()):
            raise ValueError(f'{path}: {key} are whole numbers, got {plan[key]!r:.100}: begin the sweep anew by mmpetl '
                             'sweep')
    return dict(plan)


# -- what to run ------------------------------------------------------------------------------------------------------


def folds(plan: SweepPlan) -> List[Dict[str, Any]]:
    """The independent repetitions of search and final runs: the few-shot seeds of ELEVATER, otherwise a single one."""
    return [{'shot_seed': s} for s in plan['shot_seeds']] if plan.get('shot_seeds') else [{}]


def search_of(plan: SweepPlan) -> Search:
    """The plan's search."""
    return build_search(plan)


class Unit:
    """One task and fold of a sweep: its search, then its final runs.

    Args:
        plan: The plan.
        work_dir: Folder of the sweep.
        task: Key of the task.
        fold: Options of the fold.
    """

    def __init__(self, plan: SweepPlan, work_dir: str, task: str, fold: Mapping[str, Any]) -> None:
        self.plan, self.work_dir, self.task, self.fold = plan, work_dir, task, dict(fold)
        self.search = search_of(plan)
        self._results: Dict[str, Result] = {}

    def trial(self, phase: str, params: Params, seed: int) -> Trial:
        """A trial of this unit."""
        return Trial(self.task, phase, as_dict(params), seed, self.fold)

    def folder(self, trial: Trial) -> str:
        """Absolute folder of a trial."""
        return os.path.abspath(os.path.join(self.work_dir, trial.folder()))

    def result(self, trial: Trial) -> Optional[Result]:
        """Result of a trial, None while it has none. Results never change, so each is read once."""
        folder = self.folder(trial)
        if folder not in self._results:
            result = read_result(folder)
            if result is None:
                return None
            self._results[folder] = result
        return self._results[folder]

    def searching(self) -> bool:
        """Whether there is anything to choose between."""
        return self.search.budget() > 1

    def scores(self) -> Scores:
        """Validation scores of the search so far; failed and skipped trials are None."""
        # The search is asked again with every round of results: what it wants next depends on them.
        known: Dict[Params, Optional[float]] = {}
        while True:
            found = False
            for params in self.search.propose(known):
                result = self.result(self.trial('search', params, self.plan['seeds'][0]))
                if result is not None:
                    known[params] = result.best_score if self.plan['select'] == 'best' else result.score
                    found = True
            if not found:
                return known

    def best(self) -> Optional[Params]:
        """The chosen parameters; None while the search runs or if it failed as a whole."""
        if not self.searching():
            return self.search.order({})[0]
        scores = self.scores()
        return None if self.search.propose(scores) else self.search.best(scores)

    def finals(self) -> List[Trial]:
        """The final runs, as far as the parameters are chosen."""
        best = self.best()
        return [] if best is None else [self.trial('final', best, seed) for seed in self.plan['seeds']]

    def waiting(self) -> List[Trial]:
        """Trials that can run now and have no result."""
        if self.searching():
            scores = self.scores()
            proposed = self.search.propose(scores)
            if proposed:
                return [self.trial('search', p, self.plan['seeds'][0]) for p in proposed]
        return [t for t in self.finals() if self.result(t) is None]

    def settle(self, trial: Trial) -> bool:
        """Write the result of a trial that need not run: one of a coarse-to-fine search, whose rates are constant and
        for any batch, that must diverge. True if it was one."""
        if self.plan['search'] != 'coarse_to_fine' or trial.phase != 'search' or not diverges(trial.params):
            return False
        write_result(
            self.folder(trial),
            Result(SKIPPED, error='learning rate times weight decay is 2 or more: the weights would diverge'))
        return True

    def all_trials(self) -> List[Trial]:
        """Every trial that the procedure has reached."""
        found = []
        if self.searching():
            found = [self.trial('search', p, self.plan['seeds'][0]) for p in self.search.order(self.scores())]
        return found + self.finals()


def units(plan: SweepPlan, work_dir: str) -> List[Unit]:
    """All tasks and folds of a sweep, in the order of the suite."""
    return [Unit(plan, work_dir, task, fold) for task, fold in itertools.product(plan['tasks'], folds(plan))]


def budget(plan: SweepPlan) -> Tuple[int, int]:
    """Largest number of (search, final) trials of a sweep."""
    count = len(plan['tasks']) * len(folds(plan))
    search = search_of(plan).budget()
    return count * (search if search > 1 else 0), count * len(plan['seeds'])


def forget_failures(plan: SweepPlan, work_dir: str) -> int:
    """Delete the results of failed trials, so that they run again; returns their number."""
    count = 0
    for unit in units(plan, work_dir):
        for trial in unit.all_trials():
            result = unit.result(trial)
            if result is not None and result.status == 'failed':
                os.unlink(os.path.join(unit.folder(trial), 'result.json'))
                count += 1
    return count


def failures(plan: SweepPlan, work_dir: str) -> Iterator[Tuple[Trial, Result]]:
    """Failed trials with their results."""
    for unit in units(plan, work_dir):
        for trial in unit.all_trials():
            result = unit.result(trial)
            if result is not None and result.status == 'failed':
                yield trial, result


def startable(every: Sequence[Unit], busy: Set[str]) -> List[Tuple[Unit, Trial]]:
    """Trials that could start, first those of the first task; trials that need not run are settled on the way.

    Args:
        every: The units of the sweep.
        busy: Folders of the trials that run already.
    """
    found: List[Tuple[Unit, Trial]] = []
    for unit in every:
        waiting = unit.waiting()
        while sum(unit.settle(t) for t in waiting):  # any() would settle one and look again
            waiting = unit.waiting()
        found += [(unit, t) for t in waiting if unit.folder(t) not in busy]
    return found
