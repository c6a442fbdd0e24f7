# SPDX-License-Identifier: Apache-2.0
"""``mmpetl report DIR``: what sweeps and runs have reached, as tables, plots and one HTML file."""

import argparse
import os
from typing import Any

from ...names import folder
from ..numbers import whole
from . import later


def _look(args: argparse.Namespace) -> None:
    """Refuse folders that are not there.

    Raises:
        FileNotFoundError: Naming the first.
    """
    for path in args.dirs:
        if not os.path.isdir(path):
            raise FileNotFoundError(f'{path} is no folder: name the work dir of a run, or a folder of sweeps')


def add_parser(subparsers: Any) -> None:
    """Add ``report``."""
    parser = subparsers.add_parser(
        'report', help='tables, plots and HTML pages of sweeps and runs', description=__doc__)
    parser.add_argument('dirs', nargs='+', metavar='DIR',
                        help='work dirs of training runs, folders of sweeps, or folders that hold some sweeps')
    parser.add_argument(
        '--out', type=folder, metavar='FOLDER',
        help='write <suite>.md, .csv, .tex, .png and .html of the sweeps there, and '
        '<run>.html of runs (without it: report.html in the folder of each run)')
    parser.add_argument('--tasks', nargs='+', metavar='TASK', help='report these data sets of the suite alone')
    parser.add_argument(
        '--compare', nargs=2, metavar='NAME', help='compare two sweeps of one suite, paired over data sets and seeds')
    parser.add_argument(
        '--no-test', action='store_true', help='runs: without testing the adapter, which classes, confusions and worst '
        'samples come from')
    parser.add_argument(
        '--maps', type=whole(0), metavar='N', help='runs: of how many of the worst samples to draw what the '
        'model looked at: attributions, attention, share of the prompts (default: 6; 0: none)')
    parser.set_defaults(run=later('report', _look))
