# SPDX-License-Identifier: Apache-2.0
"""``mmpetl sweep CONFIG --suite SUITE``: search on the validation part, then final seeds, on every task.

All state is on disk: what to try next follows from the result files alone. A sweep that was killed goes on when the
same command is given again, and the same command on several machines with a shared folder shares the work."""

import sys
from typing import Any

from ...names import folder
from ...training.given import ConfigOptions
from ..numbers import whole
from . import has_config, later


def add_parser(subparsers: Any) -> None:
    """Add ``sweep``."""
    parser = subparsers.add_parser(
        'sweep',
        help='search and final seeds on every task of a suite',
        description=__doc__.split('\n\n')[0],
        epilog=__doc__.split('\n\n')[1])
    parser.add_argument('config', help='config file; its entry `sweep` holds the published grid and seeds')
    parser.add_argument('--suite', required=True, help='vtab, fgvc, elevater, or the .json file of a suite of your own')
    parser.add_argument('--tasks', nargs='+', help='only these tasks')
    parser.add_argument('--root', type=folder, help="folder of the suite's data")
    parser.add_argument('--work-dir', type=folder,
                        help='folder of the sweep; default work_dirs/sweeps/<config>-<suite>')
    parser.add_argument(
        '--grid',
        nargs='+',
        metavar='KEY=V,V',
        help='values to search in place of the published ones; lr and wd for short')
    parser.add_argument('--seeds', nargs='+', type=whole(0), help='seeds of the final runs')
    parser.add_argument('--shots', type=int, help='ELEVATER: images per class, -1 for all')
    parser.add_argument('--shot-seeds', nargs='+', type=whole(0),
                        help='ELEVATER: seeds of the few-shot subsets')
    parser.add_argument('--search-epochs', type=whole(1),
                        help='epochs of a search run (recipes with a constant rate only)')
    parser.add_argument(
        '--test-every', type=whole(1),
        help='also test every so many epochs: fills the column that is chosen on test data')
    parser.add_argument(
        '--cfg-options', '--set', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
        help='config options of every run')
    parser.add_argument(
        '--keep-checkpoints', action='store_true', help='do not delete the checkpoints of finished runs')
    parser.add_argument('--retry-failed', action='store_true', help='run failed trials again')
    parser.add_argument('--jobs', type=whole(1), help='runs at a time on this machine; default one per GPU, else 1')
    parser.add_argument('--slurm', metavar='FILE', help='write a Slurm array script and stop')
    parser.add_argument('--slurm-jobs', type=whole(1), help='size of the array (default 8)')
    parser.add_argument('--slurm-line', action='append', default=[], metavar='OPTION',
                        help='further line of the script, for example --slurm-line=--gres=gpu:1')
    parser.add_argument('--dry-run', action='store_true', help='write the plan, print what would start, and stop')
    parser.set_defaults(run=later('sweep', has_config), argv=sys.argv[2:])  # for the batch script
