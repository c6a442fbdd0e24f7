# SPDX-License-Identifier: Apache-2.0
"""What every method costs, side by side in one run, ours and in its textbook form.

    python benchmarks/benchmark.py                              kept bytes and operations at base size, counted only
    python benchmarks/benchmark.py --steps 3 --timed-batch 2    and step times, as ratios
    python benchmarks/benchmark.py --methods LoRA SSF --backbones vit videomae --memory standard light --steps 3
    python benchmarks/benchmark.py --targets                    the table of cost targets, measured in this run
    python benchmarks/benchmark.py --write-docs                 docs/benchmarks.md from all results that are there

Columns:

* trainable parameters;
* MiB that one training step keeps for the backward pass per input, without head and loss, attention in a fused kernel
  where the form uses one; its ratio to full fine-tuning and to the plain form;
* GFLOP of one forward and one backward pass per input, two per multiply-add, attention included;
* with ``--steps`` a step's time as a ratio to full fine-tuning and to the plain form: the median of the rounds' ratios,
  with the smallest and the largest; on a GPU also the peak of memory that a step takes;
* with ``--kernels`` kernels, casts and synchronisations of a bf16 step at tiny size, ours and plain, with ratios to the
  plain form and to full fine-tuning.

The plain form (benchmarks/benchmark_plain.py) is the published formula written out. ``--memory`` adds rows of the forms
that compute again what they do not keep: 'light', 'lightest', or whole 'blocks'. Writes a table, methods.json
(backbones that are not measured again stay in it) and a plot.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import torch
from benchmark_costs import (
    MEMORY,
    ROOT,
    SHAPES,
    build,
    device,
    flops,
    hardware,
    interleave,
    peak_bytes,
    ratio,
    results_folder,
    share_trunk,
    train_step,
    variants,
)
from benchmark_plain import plain
from benchmark_report import plot, show, write_docs
from kernels import Kernels, counted

import mmpetl
from mmpetl.costs.memory import on_meta, saved_bytes
from mmpetl.weights import write_json


def static_costs(backbone: Any, row: Dict[str, Any], size: str, memory: str, batch: int) -> Dict[str, Any]:
    """Parameters, and bytes and operations per input of our form and, in the standard setting, of the plain one (None:
    there is none)."""
    shape = SHAPES[backbone.name] if size == 'base' else backbone.shape
    with on_meta():
        model = build(backbone, row, size, memory)
        x = torch.empty(batch, *shape)
        kept = saved_bytes(model, x) / batch
        forward, backward = flops(model, x[:1])
        found = dict(parameters=mmpetl.summary(model).without_head, kept=kept, forward=forward, backward=backward)
        if memory != 'standard':
            return found
        textbook = plain(model)
        if textbook is None:
            return dict(found, plain_kept=None, plain_forward=None, plain_backward=None)
        textbook.train()
        found['plain_kept'] = saved_bytes(textbook, x) / batch
        found['plain_forward'], found['plain_backward'] = flops(textbook, x[:1])
    return found


def kernel_counts(backbone: Any, row: Dict[str, Any]) -> Dict[str, Any]:
    """Kernels of one bf16 training step of our form and of the plain one (None: there is none), on the CPU and at the
    sizes of tests/cases.py, which have as many operations per block as the real ones."""

    def columns(found: Kernels) -> Dict[str, int]:
        return dict(forward=found.forward, backward=found.backward, casts=found.casts, syncs=found.syncs)

    ours, textbook = counted(backbone, row)
    return dict(kernels=columns(ours), plain_kernels=None if textbook is None else columns(textbook))


def timed(backbone: Any, rows: List[Dict[str, Any]], args: argparse.Namespace) -> None:
    """Add step times (ratios) to ``rows``, the first of which is full fine-tuning; the models take turns."""
    shape = SHAPES[backbone.name] if args.sizes == 'base' else backbone.shape
    x = torch.randn(args.timed_batch, *shape, device=device())
    models: Dict[str, torch.nn.Module] = {}
    for row in rows:
        models[row['name']] = build(backbone, row['row'], args.sizes, row['memory']).to(device())
        share_trunk(list(models.values()))
        textbook = plain(models[row['name']]) if row['name'] == row['row']['name'] else None
        if textbook is not None:
            models[f'{row["name"]}: plain'] = textbook.train()
            share_trunk([models['full'], textbook.model])
    runs: Dict[str, Callable[[], None]] = {name: (lambda m=m: train_step(m, x, args.amp)) for name, m in models.items()}
    took = interleave(runs, args.steps, backbone.name)
    for row in rows:
        name = row['name']
        own, textbook = took[name], took.get(f'{row["row"]["name"]}: plain')
        row.update(time_of_full=ratio(own, took['full']), time_of_plain=ratio(own, textbook) if textbook else None)
        if device() == 'cuda':
            row.update(milliseconds=1000 * sorted(own)[len(own) // 2], peak=peak_bytes(runs[name]),
                       plain_peak=peak_bytes(runs[f'{name}: plain']) if f'{name}: plain' in runs else None)


def methods_table(args: argparse.Namespace, before: Dict[str, Any]) -> Dict[str, Any]:
    """Measure everything that was asked for.

    Args:
        args: Command line.
        before: Results of earlier runs on this machine; backbones that are not measured now stay as they are.
    """
    from cases import BACKBONES
    results: Dict[str, Any] = dict(hardware=hardware(), backbones=dict(before.get('backbones', {})))
    for backbone in (b for b in BACKBONES if b.name in args.backbones):
        rows: List[Dict[str, Any]] = []
        for row in variants(args.methods):
            if backbone.name not in row.get('on', [backbone.name]):
                continue
            costs: Dict[str, Any] = {}
            for memory in args.memory:  # the plain form belongs to all settings
                costs = costs | static_costs(backbone, row, args.sizes, memory, args.batch)
                if args.kernels and memory == 'standard':
                    costs.update(kernel_counts(backbone, row))
                elif args.kernels:
                    costs.update(kernels=None)  # counted in the standard setting
                name = row['name'] if memory == 'standard' else f'{row["name"]} {memory}'
                rows.append(dict(name=name, row=row, memory=memory, **costs))
        settings = f'{args.sizes} size, bytes at batch {args.batch}'
        if args.steps and backbone.name in args.timed:
            timed(backbone, [row for row in rows if row['memory'] not in args.untimed], args)
            settings += f', {args.steps} timed rounds at batch {args.timed_batch} in {args.amp or "fp32"}'
        rows = [{k: v for k, v in row.items() if k != 'row'} for row in rows]
        results['backbones'][backbone.name] = dict(title=backbone.title, settings=settings, rows=rows)
        show(rows, f'{backbone.title}: {settings}')
    return results


def parse() -> argparse.Namespace:
    """Command line."""
    from cases import BACKBONE
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--methods', nargs='+', help='names of the support table; default all')
    parser.add_argument('--backbones', nargs='+', choices=list(BACKBONE), default=['vit'])
    parser.add_argument('--sizes', choices=['tiny', 'base'], default='base')
    parser.add_argument('--batch', type=int, default=8, help='inputs of one step')
    parser.add_argument('--timed-batch', type=int, help='inputs of one timed step; default --batch')
    parser.add_argument('--steps', type=int, default=0, help='timed rounds; 0 times nothing')
    parser.add_argument(
        '--memory', nargs='+', choices=list(MEMORY), default=[], help='memory settings beside the standard one')
    parser.add_argument(
        '--timed',
        nargs='+',
        choices=list(BACKBONE),
        default=list(BACKBONE),
        help='backbones that are timed; default all')
    parser.add_argument(
        '--untimed',
        nargs='+',
        choices=list(MEMORY)[1:],
        default=[],
        help='memory settings that are counted but not timed')
    parser.add_argument(
        '--kernels', action='store_true', help='columns of kernels, casts and synchronisations of a bf16 step')
    parser.add_argument('--amp', choices=['bf16', 'fp16'], help='autocast of the timed steps; default none')
    parser.add_argument('--targets', action='store_true', help='print the table of cost targets instead')
    parser.add_argument(
        '--write-docs', action='store_true', help='measure nothing; write docs/benchmarks.md from the results')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'benchmark')
    args = parser.parse_args()
    args.memory = list(dict.fromkeys(['standard', *args.memory]))
    args.timed_batch = args.timed_batch or args.batch
    return args


def main() -> None:
    """Measure, print, write."""
    args = parse()
    if args.write_docs:
        print(f'Written: {write_docs(args.out, ROOT / "docs" / "benchmarks.md")}')
        return
    folder = results_folder(args.out)
    if args.targets:
        from benchmark_targets import run_targets
        run_targets(folder, args.timed_batch, args.steps or 3)
        return
    path = folder / 'methods.json'
    results = methods_table(args, json.loads(path.read_text()) if path.exists() else {})
    write_json(path, results)
    plot({found['title']: found['rows']
          for found in results['backbones'].values()}, folder / 'kept_over_parameters.png')
    print(f'Written: {folder}')


if __name__ == '__main__':
    main()
