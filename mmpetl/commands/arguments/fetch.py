# SPDX-License-Identifier: Apache-2.0
"""``mmpetl fetch NAME...``: official weights and data, or what to do by hand for what stands behind a form."""

import argparse
from typing import Any

from ...names import folder
from . import later


def add_parser(subparsers: Any) -> None:
    """Add the parser of ``mmpetl fetch``."""
    parser = subparsers.add_parser('fetch', help='official weights and data of the recipes',
                                   description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help='what to fetch; none lists all names')
    parser.add_argument('--root', type=folder, help="folder of a data set; default the recipes' own")
    parser.add_argument('--mirror', action='append', default=[], metavar='URL',
                        help='folder on another server that holds the files under their own names; tried first')
    parser.set_defaults(run=later('fetch'))
