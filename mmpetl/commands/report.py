# SPDX-License-Identifier: Apache-2.0
"""``mmpetl report DIR``: what sweeps and runs have reached, as tables, plots and one HTML file."""

import argparse
import os
from functools import partial
from typing import List, Optional, Sequence

from ..sweeps.compare import compare
from ..sweeps.plan import write_text
from ..sweeps.report import Row, only, read_rows
from ..sweeps.report_files import markdown, write_all
from ..sweeps.report_pages import run_name, run_page
from ..sweeps.run_facts import is_run
from ..weights.io import atomic_write
from .progress import bar


def run(args: argparse.Namespace) -> int:
    """``mmpetl report``; status 1 if a run that was planned is missing."""
    args.dirs = list(dict.fromkeys(os.path.normpath(path) for path in args.dirs))
    runs = [path for path in args.dirs if is_run(path)]
    if runs and not set(args.dirs) - set(runs) and (args.compare or args.tasks):
        raise ValueError(f'--compare and --tasks are for sweeps, and {runs[0]} is a training run: leave them out')
    if not runs and (args.no_test or args.maps is not None):
        raise ValueError('--no-test and --maps are for training runs, and none is given: leave them out')
    if args.compare and args.compare[0] == args.compare[1]:
        raise ValueError(f'--compare names {args.compare[0]} twice: name two sweeps')
    if args.no_test and args.maps is not None:
        raise ValueError(f'--maps {args.maps} draws samples of the test that --no-test leaves out: leave one out')
    _make_folder(args.out)
    for run_dir in runs:
        with bar(f'batches, then maps, of {run_name(run_dir)}') as tick:
            page = run_page(run_dir, not args.no_test, tick, 6 if args.maps is None else args.maps)
        name = f'{run_name(run_dir).replace("/", "_")}.html' if args.out else 'report.html'
        path = os.path.join(args.out or run_dir, name)
        atomic_write(path, partial(write_text, page))
        print(path)
    sweeps = [path for path in args.dirs if path not in runs]
    return _sweeps(sweeps, args.out, args.compare, args.tasks) if sweeps else 0


def _make_folder(out: Optional[str]) -> None:
    """Make the folder of ``--out``, before anything is tested.

    Raises:
        ValueError: If that is not possible.
    """
    try:
        if out:
            os.makedirs(out, exist_ok=True)
    except OSError as error:
        raise ValueError(f'--out {out} cannot be a folder: {error.strerror}: name another one') from error


def _sweeps(folders: Sequence[str], out: Optional[str], pair: Optional[Sequence[str]],
            tasks: Optional[Sequence[str]]) -> int:
    """The report of sweeps."""
    rows = read_rows(folders)
    if tasks:
        rows = [only(row, tasks) for row in rows]
    for suite in dict.fromkeys(row.suite for row in rows):
        print(markdown([row for row in rows if row.suite == suite]))
    if pair:
        print(compare(_named(rows, pair[0]), _named(rows, pair[1])))
    if out:
        for path in write_all(rows, out):
            print(path)
    return 1 if any(cell.mean is None for row in rows for cell in row.cells.values()) else 0


def _named(rows: List[Row], name: str) -> Row:
    found = [row for row in rows if row.name == name]
    if len(found) != 1:
        raise ValueError(f'--compare: no sweep is called {name!r}: name two of {", ".join(row.name for row in rows)}')
    return found[0]
