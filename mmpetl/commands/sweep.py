# SPDX-License-Identifier: Apache-2.0
"""``mmpetl sweep CONFIG --suite SUITE``: search on the validation part, then final seeds, on every task.

All state is on disk: what to try next follows from the result files alone. A sweep that was killed goes on when the
same command is given again, and the same command on several machines with a shared folder shares the work.
"""

import argparse
import ast
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Optional

from ..datasets.tables import get_suite
from ..names import printable
from ..sweeps.plan import PLAN_FILE, SweepPlan, Unit, budget, failures, forget_failures, make_plan, units, write_text
from ..sweeps.run_facts import is_run
from ..sweeps.search import ALIASES
from ..weights.io import atomic_write
from .train import without


def _parse_grid(texts: Optional[List[str]]) -> Optional[Dict[str, List[Any]]]:
    """``['lr=0.1,1', 'wd=0']`` -> ``{'lr': [0.1, 1], 'wd': [0]}``.

    Raises:
        ValueError: If a part has another form.
    """
    if texts is None:
        return None
    grid: Dict[str, List[Any]] = {}
    for text in texts:
        key, sign, values = text.partition('=')
        if not sign or not key or not values:
            raise ValueError(f'--grid {text!r}: write KEY=VALUE,VALUE, for example lr=0.1,0.01')
        key = ALIASES.get(key, key)
        if key in grid:
            raise ValueError(f'--grid names {key} twice: give it all its values at once, separated by commas')
        grid[key] = _values(values)
    return grid


def _values(text: str) -> List[Any]:
    """``'0.1,1'`` and ``'[1,2],[3]'`` by the rules of Python; words may lack their quotes."""
    try:
        return list(ast.literal_eval(f'[{text}]'))
    except (ValueError, SyntaxError):
        return [_literal(value) for value in text.split(',')]


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


SLURM = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}
#SBATCH --ntasks=1
#SBATCH --requeue
#SBATCH --output={folder}/slurm-%A_%a.txt
{lines}
# Every job of the array takes what is free, so jobs may start, end and be requeued at any time.
# Give --partition, --gres and --time here
# or to sbatch.
cd {here}
{command}
"""


def slurm_script(argv: List[str], work_dir: str, name: str, jobs: int, lines: List[str]) -> str:
    """A batch script whose array of ``jobs`` jobs shares one sweep.

    Args:
        argv: Arguments of ``mmpetl sweep`` without those about Slurm.
        work_dir: Folder of the sweep.
        name: Name of the job.
        jobs: Size of the array.
        lines: Further options of sbatch.
    """
    command = ' '.join(shlex.quote(word) for word in [sys.executable, '-m', 'mmpetl.commands.main', 'sweep', *argv])
    return SLURM.format(
        name=name,
        last=jobs - 1,
        folder=os.path.abspath(work_dir),
        here=shlex.quote(os.getcwd()),
        command=command,
        lines='\n'.join(f'#SBATCH {line}' for line in lines) or '#')


def _check_flags(args: argparse.Namespace) -> None:
    """Raises:
        ValueError: If one flag would make another have no effect.
    """
    if args.dry_run and args.slurm:
        raise ValueError('--dry-run writes no batch script, and --slurm asks for one: leave one out')
    if not args.slurm and (args.slurm_line or args.slurm_jobs):
        raise ValueError(f'{"--slurm-line" if args.slurm_line else "--slurm-jobs"} is for a batch script: name it by '
                         '--slurm FILE')


def run(args: argparse.Namespace) -> int:
    """``mmpetl sweep``; status 1 if a final run is missing in the end."""
    if args.root and not os.path.isdir(os.path.expanduser(args.root)):
        raise FileNotFoundError(f'--root {args.root} does not exist: prepare the data there, or name their folder')
    if args.shots is not None and args.shots < 1 and args.shots != -1:
        raise ValueError(f'--shots {args.shots}: give a whole number >= 1, or -1 for all images')
    _check_flags(args)
    work_dir = args.work_dir or os.path.join('work_dirs', 'sweeps', f'{Path(args.config).stem}-{Path(args.suite).stem}')
    if is_run(work_dir) and not os.path.isfile(os.path.join(work_dir, PLAN_FILE)):
        raise ValueError(f'{work_dir} holds a training run: name another folder by --work-dir')
    changes = dict(
        grid=_parse_grid(args.grid),
        seeds=args.seeds,
        shot_seeds=args.shot_seeds,
        shots=args.shots,
        test_every=args.test_every,
        search_epochs=args.search_epochs,
        keep_checkpoints=args.keep_checkpoints or None,
        search='grid' if args.grid else None)
    plan = make_plan(args.config, work_dir, args.suite, args.tasks, args.root, args.cfg_options, **changes)
    search, final = budget(plan)
    print(
        f'{plan["name"]}, {get_suite(plan["suite"]).title}: {len(plan["tasks"])} tasks, at most {search:,} search and '
        f'{final:,} '
        f'final runs, in {work_dir}')
    if args.slurm:
        hidden = {'--slurm', '--slurm-jobs', '--slurm-line'}
        script = slurm_script(without(args.argv, hidden), work_dir, plan['name'], args.slurm_jobs or 8, args.slurm_line)
        atomic_write(args.slurm, partial(write_text, script))
        print(f'sbatch {args.slurm}')
        return 0
    if args.dry_run and args.retry_failed:
        print(f'{len(list(failures(plan, work_dir)))} failed runs would be tried again')
    if args.dry_run:
        for unit in units(plan, work_dir):
            print(f'{unit.task} {unit.fold or ""}: {len(unit.waiting())} runs can start')
        return 0
    if args.retry_failed:
        print(f'{forget_failures(plan, work_dir)} failed runs will be tried again')
    from ..sweeps.workers import work
    from ..training.work_dir import note_command
    note_command(work_dir, sys.argv)
    try:
        work(plan, work_dir, jobs=args.jobs)
    except KeyboardInterrupt:
        raise KeyboardInterrupt('finished runs are kept; the same command goes on') from None
    return _close(plan, work_dir)


def _complete(unit: Unit) -> bool:
    results = [unit.result(trial) for trial in unit.finals()]
    return bool(results) and all(r is not None and r.status == 'ok' for r in results)


def _close(plan: SweepPlan, work_dir: str) -> int:
    failed = list(failures(plan, work_dir))
    for trial, result in failed:
        print(printable(f'FAILED {trial.folder()}: {result.error}'))
    every = units(plan, work_dir)
    missing = [unit for unit in every if not _complete(unit)]
    print(
        f'{len(every) - len(missing)} of {len(every)} units are complete, {len(failed)} runs failed; mmpetl report '
        f'{work_dir}'
    )
    return 1 if missing else 0
