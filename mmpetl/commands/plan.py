"""``mmpetl plan CONFIG``: what configs cost before they are trained, side by side."""

import argparse
import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, List, Sequence, Tuple

from mmengine.config import DictAction

from ..costs.plan import Plan, plan
from ..training.build import read_config


def _size(number: int) -> str:
    for unit, factor in (('GiB', 1 << 30), ('MiB', 1 << 20), ('KiB', 1 << 10)):
        if number >= factor:
            return f'{number / factor:.2f} {unit}'
    return f'{number} B'


def rows(p: Plan) -> List[Tuple[str, str]]:
    """(name, value) of everything that is shown."""
    return [('backbone', p.backbone.split('.')[-1]), ('methods', '\n'.join(p.methods) or 'none'),
            ('input x batch', f'{"x".join(map(str, p.input))} x {p.batch}'), ('base parameters', f'{p.base:,}'),
            ('trainable without head', f'{p.without_head:,}'), ('  % of base', f'{p.percent:.3f}'),
            ('head', f'{p.head:,}'), ('trainable with head', f'{p.total:,}'), ('adapter file', _size(p.adapter_bytes)),
            ('GMAC of one input', f'{p.gmac:.2f}'), ('  plain trunk', f'{p.gmac_base:.2f}'),
            ('weights', _size(p.weight_bytes)), ('activations of a batch', _size(p.activation_bytes)),
            ('gradients', _size(p.gradient_bytes)), ('optimizer', _size(p.optimizer_bytes)),
            ('training memory', _size(p.memory_bytes)), ('notes', '\n'.join(p.notes) or '-')]


def show(plans: Sequence[Plan]) -> None:
    """Print plans side by side."""
    from rich.console import Console
    from rich.table import Table
    table = Table(
        '', *(p.config for p in plans), title='estimates in single precision; activations: kept for the backward pass')
    for cells in zip(*(rows(p) for p in plans)):
        table.add_row(cells[0][0], *(value.replace('[', r'\[') for _, value in cells))
    Console(width=None if sys.stdout.isatty() else 40 + 44 * len(plans)).print(table)


def add_parser(subparsers: Any) -> None:
    """Add ``mmpetl plan``."""
    parser = subparsers.add_parser('plan', help='parameters, compute and memory of a config before training')
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='one or several configs')
    parser.add_argument(
        '--input', nargs='+', type=int, metavar='N', help='size of one input, H W or T H W; default that of the config')
    parser.add_argument(
        '--cfg-options',
        '--set', nargs='+', action=DictAction, metavar='KEY=VALUE', help='override entries of every config')
    parser.add_argument('--json', action='store_true', help='machine-readable output')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print the plans.

    Raises:
        FileNotFoundError: If a config does not exist.
        ValueError: If a model cannot be built or run.
    """
    if args.input and len(args.input) not in (2, 3):
        raise ValueError(f'--input takes H W or T H W, got {len(args.input)} numbers')
    shape = (3, *args.input) if args.input else None
    plans = []
    with contextlib.redirect_stdout(sys.stderr):  # building a model may log
        for path in args.configs:
            plans.append(plan(read_config(path, args.cfg_options), Path(path).stem, shape))
    if args.json:
        print(json.dumps([dict(asdict(p), memory_bytes=p.memory_bytes) for p in plans], indent=2))
    else:
        show(plans)
