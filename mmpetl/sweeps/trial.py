# SPDX-License-Identifier: Apache-2.0
"""One training run of a sweep: from its description to its result file. ``python -m mmpetl.sweeps.trial`` runs those
that it is told to.

A trial's folder holds ``trial.json`` (what to run), ``run/`` (what MMEngine writes) and, as soon as it is over,
``result.json``. A folder without a result was never finished: running it again continues from its last checkpoint.
"""

import glob
import hashlib
import json
import math
import os
import re
import shutil
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional

from ..clean_errors import one_line
from ..datasets.tables import get_suite, get_task
from ..evaluation import METRIC_KEYS
from ..names import printable
from ..training.run import build_runner
from ..training.tasks import apply_task
from ..training.work_dir import claimed, newest_checkpoint, refuse_or_clear
from ..weights.guards import parse_json
from ..weights.io import write_json
from ..weights.reading import MAX_LIST, read_json, read_text
from .search import describe_params

OK, FAILED, SKIPPED = 'ok', 'failed', 'skipped'


@dataclass(frozen=True)
class Trial:
    """What distinguishes one run of a sweep from the others.

    Attributes:
        task: Key of the task.
        phase: 'search' or 'final'.
        params: Config options that the search chose.
        seed: Random seed of the run.
        fold: Further options of ``cfg.task``, for example ``{'shot_seed': 1}``.
    """
    task: str
    phase: str
    params: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    fold: Mapping[str, Any] = field(default_factory=dict)

    def folder(self) -> str:
        """Folder of the trial, relative to the sweep's; readable, and unique by a digest."""
        text = ','.join([f'{key.split(".")[-1]}={value}'
                         for key, value in self.params.items()] if self.phase == 'search' else [f'seed={self.seed}'])
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:8]
        return os.path.join(self.task, *[f'{k}={v}' for k, v in self.fold.items()], self.phase,
                            re.sub(r'[^\w.,=+-]', '_', text)[:80] + f'-{digest}')


@dataclass
class Result:
    """What came out of a trial.

    Attributes:
        status: 'ok', 'failed' or 'skipped'.
        score: Score of the last epoch in per cent: the headline.
        best_score: Highest score of any evaluated epoch; on test data it is chosen by looking at them.
        best_epoch: Epoch of it.
        epochs: Epochs that were evaluated.
        params: Trainable parameters, head included.
        head_params: Those of the head.
        seconds: Wall time; of a run that was killed and went on, that of its last piece.
        peak_bytes: Peak device memory that PyTorch allocated; None without a GPU.
        error: Why it failed or was skipped, one line.
        cpu_seconds: ``seconds`` as time of the processor, without that of loader processes: on a busy machine it is the
            one to compare. None in results of older versions.
    """
    status: str
    score: Optional[float] = None
    best_score: Optional[float] = None
    best_epoch: Optional[int] = None
    epochs: List[int] = field(default_factory=list)
    params: Optional[int] = None
    head_params: Optional[int] = None
    seconds: float = 0.
    peak_bytes: Optional[int] = None
    error: str = ''
    cpu_seconds: Optional[float] = None


def read_result(folder: str) -> Optional[Result]:
    """Result of a trial's folder, None if it has none.

    Raises:
        ValueError: If the file is damaged.
    """
    path = os.path.join(folder, 'result.json')
    if not os.path.isfile(path):
        return None
    try:
        found = Result(**read_json(path))
        _check_kinds(found)
        return found
    except (TypeError, ValueError) as error:
        raise ValueError(f'{path} is damaged ({error}): delete it, and the trial is run again') from None


def _check_kinds(result: Result) -> None:
    number, whole = (int, float, type(None)), (int, type(None))
    kinds: Dict[str, Any] = dict(
        status=str, score=number, best_score=number, best_epoch=whole, epochs=list, params=whole, head_params=whole,
        seconds=(int, float), cpu_seconds=number, peak_bytes=whole, error=str)
    for key, kind in kinds.items():
        if not isinstance(getattr(result, key), kind):
            raise TypeError(f'{key} is a {type(getattr(result, key)).__name__}')
    if result.status not in (OK, FAILED, SKIPPED):
        raise ValueError(f'status {result.status!r:.40}')
    if result.status == OK and None in (result.score, result.best_score):
        raise ValueError('a finished run without a score')


def write_result(folder: str, result: Result) -> None:
    """Write ``result.json``; it is there as a whole or not at all."""
    write_json(os.path.join(folder, 'result.json'), asdict(result))


# -- the config of a trial --------------------------------------------------------------------------------------------


def trial_config(plan: Mapping[str, Any], trial: Trial, folder: str) -> Any:
    """Config of a trial.

    Args:
        plan: Contents of the sweep's ``sweep.json``, with the absolute path of its config under 'config'.
        trial: The trial.
        folder: Its folder.

    Raises:
        ValueError: If ``search_epochs`` is asked of a recipe with a schedule.
    """
    from mmengine.config import Config

    cfg = Config.fromfile(plan['config'], format_python_code=False)  # formatting takes a fifth of a small trial
    cfg.merge_from_dict(dict(plan.get('cfg_options', {})))
    cfg.task.update(suite=plan['suite'], name=trial.task, phase=trial.phase, **trial.fold)
    if plan.get('root'):
        cfg.task.root = plan['root']
    cfg.work_dir = os.path.join(folder, 'run')
    apply_task(cfg, {**plan.get('cfg_options', {}), **trial.params})
    # of its own: MMEngine hands the message hub of a name to every runner of that name in a process
    cfg.experiment_name = f'{trial.task}-{trial.phase}-{os.path.basename(folder)[-8:]}-{time.time_ns()}'
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=trial.seed)
    cfg.resume = True
    cfg.load_from = None
    _set_epochs(cfg, plan, trial)
    _set_loaders(cfg)
    if get_suite(plan['suite']).form == 'elevater' and trial.phase == 'final':
        for name in ('val_evaluator', 'test_evaluator'):
            cfg[name] = [*cfg[name], dict(type='mmpetl.DumpScores', out_file=os.path.join(folder, 'scores.npz'))]
    cfg.metric_key = METRIC_KEYS[get_task(plan['suite'], trial.task).metric]
    return cfg


def _set_loaders(cfg: Any) -> None:
    """Workers that stay over the epochs, and pinned memory, as the training tool sets them."""
    import torch
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        if cfg.get(name):
            cfg[name].setdefault('pin_memory', torch.cuda.is_available())
            cfg[name]['persistent_workers'] = bool(cfg[name].get('num_workers'))


def check_search_epochs(cfg: Any, epochs: int) -> None:
    """A search run may be shortened where the rate is constant.

    Raises:
        ValueError: If the recipe has a schedule.
    """
    if cfg.get('param_scheduler'):
        raise ValueError(f'search_epochs={epochs} shortens a run without its schedule: it is for recipes with a '
                         'constant rate; use recipes of the wanted length instead')


def _set_epochs(cfg: Any, plan: Mapping[str, Any], trial: Trial) -> None:
    """Length, evaluation and checkpoints of the run."""
    if not cfg.get('train_cfg'):
        return
    epochs = plan.get('search_epochs') if trial.phase == 'search' else None
    if epochs:
        check_search_epochs(cfg, epochs)
    cfg.train_cfg.max_epochs = epochs or cfg.train_cfg.max_epochs
    last = cfg.train_cfg.max_epochs
    every = (1 if plan.get('select') == 'best' else None) if trial.phase == 'search' else plan.get('test_every')
    cfg.train_cfg.val_interval = min(every or last, last)
    checkpoint = (cfg.get('default_hooks') or {}).get('checkpoint')
    if isinstance(checkpoint, dict):
        # A search run is short: it starts again when interrupted. A final run loses a tenth of its epochs at most.
        checkpoint.update(interval=last if trial.phase == 'search' else max(1, last // 10), max_keep_ckpts=1)


# -- running ----------------------------------------------------------------------------------------------------------


def logs_of(work_dir: str) -> List[str]:
    """The log files of numbers that MMEngine wrote, one per piece of a run, oldest first."""
    return sorted(glob.glob(os.path.join(glob.escape(work_dir), '*', 'vis_data', 'scalars.json')))


def log_rows(work_dir: str) -> Iterator[Dict[str, Any]]:
    """What MMEngine logged of a run: one dict per line that has a ``step``, oldest first."""
    for path in logs_of(work_dir):
        for line in read_text(path, MAX_LIST).splitlines():
            try:
                row = parse_json(line, finite=False)
            except ValueError:  # the last line of a run that was killed while writing
                continue
            if isinstance(row, dict) and isinstance(row.get('step'), (int, float)):
                yield row


def read_history(work_dir: str, key: str) -> Dict[int, float]:
    """Score of every evaluated epoch, from the log files that MMEngine wrote; later pieces of a resumed run win."""
    return {int(row['step']): float(row[key]) for row in log_rows(work_dir) if key in row}


def _finish(runner: Any, cfg: Any, history: Mapping[int, float]) -> Result:
    import torch
    last = max(history)
    best = max(history, key=lambda epoch: (history[epoch], -epoch))
    if not all(math.isfinite(score) for score in history.values()):
        return Result(FAILED, error='a score is not a finite number')
    named = [(name, p.numel()) for name, p in runner.model.named_parameters() if p.requires_grad]
    return Result(OK, history[last], history[best], best, sorted(history), sum(n for _, n in named),
                  sum(n for name, n in named if name.startswith('head.')),
                  peak_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None)


def _train(cfg: Any) -> Result:
    """Train (or only test, where nothing trains) and read the scores."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if not cfg.get('train_dataloader'):
        runner = build_runner(cfg)
        runner.model.init_weights()  # a runner that only tests would leave the backbone random
        return _finish(runner, cfg, {0: float(runner.test()[cfg.metric_key])})
    with claimed(cfg.work_dir):
        newest = newest_checkpoint(cfg.work_dir)
        if newest.path is None and newest.damaged:
            refuse_or_clear(cfg.work_dir, overwrite=True)  # a trial can always be run again
        runner = build_runner(cfg)
        runner.train()
    history = read_history(cfg.work_dir, cfg.metric_key)
    if not history:
        raise ValueError(f'the run ended without the score {cfg.metric_key!r}')
    return _finish(runner, cfg, history)


def run_trial(plan: Mapping[str, Any], trial: Trial, folder: str) -> Result:
    """Run a trial to its end, in this process, and write its result. An error becomes a failed result, never a score.

    Args:
        plan: Contents of the sweep's ``sweep.json``.
        trial: The trial.
        folder: Its folder, absolute.

    Returns:
        The result.
    """
    started, processor = time.time(), time.process_time()
    try:
        result = _train(trial_config(plan, trial, folder))
    except Exception as error:
        import traceback
        os.makedirs(folder, exist_ok=True)
        Path(folder, 'error.txt').write_text(traceback.format_exc(), encoding='utf-8')
        result = Result(FAILED, error=one_line(error))
    result.seconds, result.cpu_seconds = round(time.time() - started, 1), round(time.process_time() - processor, 1)
    _close_logs()
    if not plan.get('keep_checkpoints'):
        _clean(folder, trial.phase)
    write_result(folder, result)
    return result


def _clean(folder: str, phase: str) -> None:
    """Remove what a finished trial no longer needs; final runs keep their adapter."""
    patterns = ['*.pth', 'last_checkpoint', *(['*.safetensors'] if phase == 'search' else [])]
    for pattern in patterns:
        for path in glob.glob(os.path.join(glob.escape(folder), 'run', pattern)):
            shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)


def _die_with_parent() -> None:
    """End this process when the sweep that started it is gone: a second sweep may take the trial over."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)  # at once: sys.exit would end this thread alone

    threading.Thread(target=watch, daemon=True).start()


def _close_logs() -> None:
    """Close the log files that runners of this process have opened; MMEngine keeps them open until it ends."""
    import logging

    from mmengine.logging import MMLogger
    for logger in list(getattr(MMLogger, '_instance_dict', {}).values()):
        for handler in [h for h in logger.handlers if isinstance(h, logging.FileHandler)]:
            handler.close()
            logger.removeHandler(handler)


def serve() -> None:
    """Run one trial after the other: each line of stdin names a folder, each is answered by ``done`` on stdout.

    Starting Python and its libraries takes longer than a small trial, so one process serves many. While a trial runs,
    its output goes to ``log.txt`` of its folder.
    """
    _die_with_parent()
    answers = os.fdopen(os.dup(1), 'w')  # before libraries' output takes the place of standard output
    for line in iter(sys.stdin.readline, ''):
        folder = line.rstrip('\n')
        with open(os.path.join(folder, 'log.txt'), 'ab') as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        spec = read_json(os.path.join(folder, 'trial.json'))
        run_trial(spec['plan'], Trial(**spec['trial']), folder)
        sys.stdout.flush()
        print('done', file=answers, flush=True)


def describe(trial: Trial, result: Result) -> str:
    """One line about a finished trial."""
    what = describe_params({**trial.fold, **trial.params}, ', ')
    head = f'{trial.task} {trial.phase} seed {trial.seed}' + (f' ({what})' if what else '')
    if result.status != OK:
        return printable(f'{head}: {result.status.upper()}: {result.error}')
    return f'{head}: {result.score:.2f} after {result.seconds:.0f} s'


if __name__ == '__main__':
    serve()
