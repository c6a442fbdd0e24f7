# SPDX-License-Identifier: Apache-2.0
"""What torch.compile saves.

    python benchmarks/benchmark_compile.py [--methods LoRA VPT ...] [--backbones vit] [--batch 2] [--steps 3]

The same model as it is and compiled (default backend), one after the other in every round: a training step (forward and
backward pass) and inference. Ratios are compiled over eager, medians with the smallest and largest round in brackets,
and the seconds that the first step takes longer, which a run pays once. The outputs of inference are compared before
anything is timed. Writes compile.json.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List
from unittest.mock import patch

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import torch
from benchmark_costs import (
    ROOT,
    SHAPES,
    build,
    device,
    hardware,
    interleave,
    last,
    ratio,
    results_folder,
    seconds,
    train_step,
    variants,
)
from benchmark_peers import infer
from benchmark_report import print_table, spread

from mmpetl.weights import write_json

#: What is measured if nothing is said; compiling takes a minute or more each.
METHODS = ['linear probe', 'LoRA']


def measure(backbone: Any, row: Dict[str, Any], args: argparse.Namespace) -> List[str]:
    """Cells of one row.

    Raises:
        RuntimeError: If the compiled model gives other outputs.
    """
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = build(backbone, row, args.sizes).to(device())
    compiled: Any = torch.compile(model)
    shape = SHAPES[backbone.name] if args.sizes == 'base' else backbone.shape
    x = torch.randn(args.batch, *shape, device=device())
    # What another row or run left on the disk would hide the time to compile.
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder):
        first = [seconds(lambda m=m: train_step(m, x, args.amp)) for m in (model, compiled)]
        model.eval()
        with torch.no_grad():
            expected, found = last(model(x)), last(compiled(x))
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
            raise RuntimeError(f'{row["name"]}: compiled outputs differ by {(found - expected).abs().max()}')
        passes = interleave({
            'eager': lambda: infer(model, x),
            'compiled': lambda: infer(compiled, x)
        }, args.steps, row['name'])
        model.train()
        runs: Dict[str, Callable[[], None]] = {
            'eager': lambda: train_step(model, x, args.amp), 'compiled': lambda: train_step(compiled, x, args.amp)}
        took = interleave(runs, args.steps, row['name'])
    return [
        row['name'],
        spread(ratio(took['compiled'], took['eager'])),
        spread(ratio(passes['compiled'], passes['eager'])), f'{first[1] - first[0]:.0f}'
    ]


def main() -> None:
    """Measure, print, write."""
    from cases import BACKBONE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--methods', nargs='+', default=METHODS, help=f'names of the support table; default {" ".join(METHODS)}')
    parser.add_argument('--backbones', nargs='+', choices=list(BACKBONE), default=['vit'])
    parser.add_argument('--sizes', choices=['tiny', 'base'], default='base')
    parser.add_argument('--batch', type=int, default=2)
    parser.add_argument('--steps', type=int, default=3, help='timed rounds (default 3)')
    parser.add_argument('--amp', choices=['bf16', 'fp16'], help='autocast of the training steps; default none')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'benchmark')
    args = parser.parse_args()
    header = ['', 'training step', 'inference', 'seconds to compile']
    tables = []
    for name in args.backbones:
        backbone = BACKBONE[name]
        rows = [row for row in variants(args.methods) if row['name'] in args.methods and name in row.get('on', [name])]
        cells = [measure(backbone, row, args) for row in rows]
        tables.append(dict(title=f'{backbone.title}, compiled over eager', header=header, rows=cells))
        print_table(tables[-1]['title'], header, cells)
    folder = results_folder(args.out)
    settings = f'{args.sizes} size, batch {args.batch}, {args.amp or "fp32"}, {args.steps} timed rounds'
    write_json(folder / 'compile.json', dict(hardware=hardware(), settings=settings, tables=tables))
    print(f'Written: {folder / "compile.json"}')


if __name__ == '__main__':
    main()
