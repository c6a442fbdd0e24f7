# SPDX-License-Identifier: Apache-2.0
"""``mmpetl submit DIR``: write the ELEVATER submission of a finished sweep."""

from typing import Any

from . import later


def add_parser(subparsers: Any) -> None:
    """Add ``submit``."""
    parser = subparsers.add_parser('submit', help='write the ELEVATER submission', description=__doc__)
    parser.add_argument('dir', metavar='DIR', help='folder of a finished ELEVATER sweep')
    parser.add_argument('--out', help='the zip file; default DIR/all_predictions.zip')
    parser.add_argument('--name', help="model name on the leaderboard; default the sweep's")
    parser.add_argument('--partial', action='store_true', help='write it although data sets are missing')
    parser.set_defaults(run=later('submit'))
