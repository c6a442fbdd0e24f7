# SPDX-License-Identifier: Apache-2.0
"""``mmpetl submit DIR``: write the ELEVATER submission of a finished sweep."""

import argparse
import os
from typing import Any

from ..sweeps.submission import submission, write_submission


def run(args: argparse.Namespace) -> None:
    """``mmpetl submit``."""
    out = args.out or os.path.join(args.dir, 'all_predictions.zip')
    entries = submission(args.dir, args.name, complete=not args.partial)
    write_submission(entries, out)
    print(
        f'{out}: {len(entries)} data sets, seeds {", ".join(map(str, entries[0]["rnd_seeds"]))}, '
        f'{os.path.getsize(out) / 2**10:,.0f} KiB'
    )


def add_parser(subparsers: Any) -> None:
    """Add ``submit``."""
    parser = subparsers.add_parser('submit', help='write the ELEVATER submission', description=__doc__)
    parser.add_argument('dir', metavar='DIR', help='folder of a finished ELEVATER sweep')
    parser.add_argument('--out', help='the zip file; default DIR/all_predictions.zip')
    parser.add_argument('--name', help="model name on the leaderboard; default the sweep's")
    parser.add_argument('--partial', action='store_true', help='write it although data sets are missing')
    parser.set_defaults(run=run)
