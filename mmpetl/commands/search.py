# SPDX-License-Identifier: Apache-2.0
"""``mmpetl search CONFIG``: find learning rate, sizes and methods on the validation part, by Ray Tune's ASHA.

The same command goes on where an interrupted search stopped.
"""

import argparse
import os
import shlex
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    """Add ``search``."""
    from ..names import folder
    from ..training.given import ConfigOptions
    from .numbers import not_negative, positive, whole
    parser = subparsers.add_parser('search', help='find rate, size and method on the validation part',
                                   description=__doc__)
    parser.add_argument('config', help='config file, or the name of a shipped one')
    parser.add_argument('--space', nargs='+', action='extend', default=[], metavar='KEY=KIND(...)',
                        help='what to vary: choice([...]), uniform(a, b), loguniform(a, b), randint(a, b); lr and wd '
                        'for short; default the learning rate over three decades')
    parser.add_argument('--samples', type=whole(1), default=16, help='runs (default 16)')
    parser.add_argument('--metric', default='accuracy/top1', help='score to raise (default accuracy/top1)')
    parser.add_argument('--work-dir', type=folder, help='folder of the search; default work_dirs/search/<config>')
    parser.add_argument('--cfg-options', '--set', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
                        help='config options of every run')
    parser.add_argument('--gpus-per-run', type=not_negative, default=1.,
                        help='may be a fraction, 0 for none (default 1)')
    parser.add_argument('--cpus-per-run', type=positive, default=1., help='CPU cores of a run (default 1)')
    parser.add_argument('--address', help="a Ray cluster, or 'auto'; default this machine")
    parser.add_argument('--seed', type=whole(0), default=0, help='seed of the samples')
    parser.add_argument('--on-test', action='store_true', help='allow a validation part that is the test set')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search, print the runs.

    Raises:
        ValueError: If something does not fit, or no run has a score.
    """
    from ..sweeps.tune import search, table
    work_dir = args.work_dir or os.path.join('work_dirs', 'search', Path(args.config).stem)
    rows = search(args.config, work_dir, args.space, args.samples, args.metric, args.cfg_options, args.gpus_per_run,
                  args.cpus_per_run, args.seed, args.on_test, args.address)
    for score, epochs, params in table(rows):
        print(f'{score:>8}  {epochs:>3} epochs  {params}')
    best = os.path.join(work_dir, 'best.py')
    if not rows or rows[0]['score'] is None:
        why = (rows[0]['error'] or 'no validation') if rows else 'none was started'
        raise ValueError(f'{work_dir}: no run has a score ({why[:400]}): mend the config or the ranges')
    print(f'best config: {best}; train it with: mmpetl train {shlex.quote(best)}')
    return 0
