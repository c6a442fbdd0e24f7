# SPDX-License-Identifier: Apache-2.0
"""``mmpetl report DIR``: what sweeps have reached, as a table and as a plot."""

import argparse
from typing import Any

from ..sweeps.report import read_rows
from ..sweeps.report_files import markdown, write_all


def run(args: argparse.Namespace) -> int:
    """``mmpetl report``; status 1 if a run that was planned is missing."""
    rows = read_rows(args.dirs)
    for suite in dict.fromkeys(row.suite for row in rows):
        print(markdown([row for row in rows if row.suite == suite]))
    if args.out:
        for path in write_all(rows, args.out):
            print(path)
    return 1 if any(cell.mean is None for row in rows for cell in row.cells.values()) else 0


def add_parser(subparsers: Any) -> None:
    """Add ``report``."""
    parser = subparsers.add_parser('report', help='tables and plots of finished sweeps', description=__doc__)
    parser.add_argument('dirs', nargs='+', metavar='DIR', help='folders of sweeps, or folders that hold some')
    parser.add_argument('--out', metavar='FOLDER', help='also write <suite>.md, .csv, .tex and .png there')
    parser.set_defaults(run=run)
