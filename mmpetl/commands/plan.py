# SPDX-License-Identifier: Apache-2.0
"""``mmpetl plan CONFIG``: what configs cost before they are trained, side by side."""

import argparse
import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import List, Mapping, Optional, Sequence, Tuple

from ..costs.compare import Choice, budget_bytes, compare
from ..costs.plan import Plan, plan
from ..training.build import read_config
from .progress import bar


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
            ('GMAC of one input', f'{p.gmac:.2f}'), ('  base alone', f'{p.gmac_base:.2f}'),
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
    # in a pipe rich would take 80 columns, too few for several plans
    Console(width=None if sys.stdout.isatty() else 40 + 44 * len(plans)).print(table)


def show_choices(choices: Sequence[Choice], refused: Mapping[str, str], title: str) -> None:
    """Print what :func:`mmpetl.costs.compare.compare` found."""
    from rich.console import Console
    from rich.table import Column, Table
    table = Table('method', 'memory', *(Column(name, justify='right') for name in (
        'trainable', 'adapter file', 'GMAC', 'of the batch', 'largest batch')), title=title)
    for c in choices:
        table.add_row(c.method, c.memory, f'{c.plan.total:,}', _size(c.plan.adapter_bytes), f'{c.plan.gmac:.2f}',
                      _size(c.plan.memory_bytes), 'any' if c.largest_batch is None else f'{c.largest_batch:,}')
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for name, reason in refused.items():
        console.print(f'not on this backbone: {name}: {reason[:160]}', markup=False, highlight=False)


def run(args: argparse.Namespace) -> None:
    """Print the plans.

    Raises:
        FileNotFoundError: If a config does not exist.
        ValueError: If a model cannot be built or run.
    """
    if args.input and len(args.input) not in (2, 3):
        raise ValueError(f'--input takes H W or T H W, got {len(args.input)} numbers')
    shape = (3, *args.input) if args.input else None
    if args.compare or args.methods or args.budget:
        return _compare(args, shape)
    plans = []
    with contextlib.redirect_stdout(sys.stderr):  # building a model may log
        for path in args.configs:
            plans.append(plan(read_config(path, args.cfg_options), Path(path).stem, shape))
    if args.json:
        print(json.dumps([dict(asdict(p), memory_bytes=p.memory_bytes) for p in plans], indent=2))
    else:
        show(plans)


def _compare(args: argparse.Namespace, shape: Optional[Tuple[int, ...]]) -> None:
    if len(args.configs) != 1:
        raise ValueError(f'--compare, --methods and --budget take one config, got {len(args.configs)}')
    budget = budget_bytes(args.budget) if args.budget else None
    with contextlib.redirect_stdout(sys.stderr), bar('settings planned') as progress:
        cfg = read_config(args.configs[0], args.cfg_options)
        choices, refused = compare(cfg, budget, args.methods, shape, progress)
    if args.json:
        print(json.dumps(dict(choices=[c.as_dict() for c in choices], refused=refused), indent=2))
        return
    batch = choices[0].plan.batch if choices else 0
    within = f', within {_size(budget)}' if budget else ''
    title = f'{Path(args.configs[0]).stem}: memory of a step with batch {batch}{within}; estimates in single precision'
    show_choices(choices, refused, title)
