"""What every method costs, side by side in one run.

    python tools/benchmark.py                                    kept bytes and compute at base size, computed without allocating anything
    python tools/benchmark.py --steps 5 --sizes tiny             and step times, interleaved, as ratios to full fine-tuning
    python tools/benchmark.py --methods LoRA SSF --backbones vit videomae --steps 3

Columns: trainable parameters; MiB that one training step keeps for the backward pass per input (without head and loss, attention as a
fused kernel keeps it) and its ratio to full fine-tuning of the same backbone; GMAC of one forward pass, attention included; with
``--steps`` the median step time as a ratio to full fine-tuning, and its spread. ``light`` rows recompute every block in the backward pass
(``with_cp=True``). Writes a table, results.json and a plot.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
for folder in (ROOT, ROOT / 'tests'):
    if folder.is_dir():
        sys.path.insert(0, str(folder))

import mmpetl  # noqa: E402
from mmpetl.apis.memory import on_meta, saved_bytes  # noqa: E402
from mmpetl.apis.plan import macs  # noqa: E402
from mmpetl.weights import atomic_write, write_json  # noqa: E402

SHAPES = dict(vit=(3, 224, 224), clip=(3, 224, 224), swin=(3, 224, 224), videomae=(3, 16, 224, 224), video_swin=(3, 16, 224, 224))


def variants(names: Optional[Sequence[str]]) -> List[Dict[str, Any]]:
    """Rows of the table: full fine-tuning, linear probe, BitFit, and the methods of tests/cases.py at published size."""
    from cases import METHODS
    rows: List[Dict[str, Any]] = [dict(name='full', tune=['*']), dict(name='linear probe'), dict(name='BitFit', tune=['*bias*'])]
    rows += [dict(name=c.name, petl=c.real, tiny=c.petl, on=c.on) for c in METHODS if c.real]
    chosen = [row for row in rows if not names or row['name'] in names or row['name'] == 'full']
    unknown = set(names or ()) - {row['name'] for row in rows}
    if unknown:
        raise SystemExit(f'unknown method {sorted(unknown)[0]!r}; known: {", ".join(row["name"] for row in rows)}')
    return chosen


def build(backbone: Any, row: Dict[str, Any], size: str, light: bool) -> torch.nn.Module:
    """The backbone of one row; real size on the meta device where nothing is timed."""
    options = dict(petl=row.get('petl' if size == 'base' else 'tiny', []), tune=row.get('tune', []), with_cp=light)
    arguments = backbone.real if size == 'base' else backbone.kwargs
    return mmpetl.registry.MODELS.build({'type': backbone.type, **arguments, **options})


def static_costs(backbone: Any, row: Dict[str, Any], size: str, light: bool, batch: int) -> Dict[str, Any]:
    """Parameters, kept bytes per input, GMAC."""
    shape = SHAPES[backbone.name] if size == 'base' else backbone.shape
    with on_meta():
        model = build(backbone, row, size, light)
        model.train()
        kept = saved_bytes(model, torch.empty(batch, *shape)) / batch
        return dict(parameters=mmpetl.summary(model).without_head, kept=kept, gmac=macs(model, shape) / 1e9)


def one_step(model: torch.nn.Module, x: Tensor) -> float:
    """Seconds of one forward and backward pass."""
    from cases import features
    if x.is_cuda:
        torch.cuda.synchronize()
    began = time.perf_counter()
    loss = features(model(x)).float().square().mean()
    if loss.requires_grad:
        loss.backward()
    if x.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def timed(backbone: Any, rows: List[Dict[str, Any]], size: str, batch: int, steps: int) -> None:
    """Add step times (ratios to the first row) to ``rows``; the models take turns, so that a busy machine slows all alike."""
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    shape = SHAPES[backbone.name] if size == 'base' else backbone.shape
    x = torch.randn(batch, *shape, device=device)
    models = [build(backbone, row['row'], size, row['light']).to(device) for row in rows]
    for model in models:
        model.train()
    seconds: List[List[float]] = [[] for _ in models]
    for step in range(steps + 1):
        for model, found in zip(models, seconds):
            took = one_step(model, x)
            if step:
                found.append(took)
            model.zero_grad(set_to_none=True)
        print(f'{backbone.name}: step {step} of {steps}', flush=True)
    for row, found in zip(rows, seconds):
        ratios = [a / b for a, b in zip(found, seconds[0])]
        row.update(time_ratio=statistics.median(ratios), time_spread=(min(ratios), max(ratios)))


def show(rows: List[Dict[str, Any]], title: str) -> None:
    """Print one backbone's table."""
    from rich.console import Console
    from rich.table import Table
    table = Table(title=title)
    timing = 'time_ratio' in rows[0]
    for name in ('method', 'trainable', 'kept MiB/input', 'of full', 'GMAC') + (('step time of full', ) if timing else ()):
        table.add_column(name, justify='left' if name == 'method' else 'right')
    for row in rows:
        of_full = row['kept'] / rows[0]['kept']
        cells = [row['name'], f'{row["parameters"]:,}', f'{row["kept"] / 2**20:.2f}', f'{of_full:.3f}', f'{row["gmac"]:.2f}']
        if timing:
            low, high = row['time_spread']
            cells.append(f'{row["time_ratio"]:.2f} ({low:.2f}-{high:.2f})')
        table.add_row(*cells)
    Console(width=None if sys.stdout.isatty() else 110).print(table)


def plot(results: Dict[str, List[Dict[str, Any]]], path: Path) -> None:
    """Kept bytes over trainable parameters."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(8, 5), dpi=150, layout='constrained')
    for name, rows in results.items():
        found = [r for r in rows if r['parameters']]
        axes.scatter([r['parameters'] for r in found], [r['kept'] / rows[0]['kept'] for r in found], label=name, alpha=0.7)
        for r in found:
            axes.annotate(r['name'], (r['parameters'], r['kept'] / rows[0]['kept']), (4, 3), textcoords='offset points', fontsize=6)
    axes.set(xscale='log', xlabel='trainable parameters', ylabel='kept for the backward pass, of full fine-tuning')
    axes.grid(True, alpha=0.25)
    axes.legend()
    atomic_write(path, lambda file: figure.savefig(file, format='png'))
    plt.close(figure)


def main() -> None:
    """Command line."""
    from cases import BACKBONE, BACKBONES
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--methods', nargs='+', help='names of the support table; default all')
    parser.add_argument('--backbones', nargs='+', choices=list(BACKBONE), default=['vit'])
    parser.add_argument('--sizes', choices=['tiny', 'base'], default='base')
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--steps', type=int, default=0, help='timed steps per method; 0 times nothing')
    parser.add_argument('--light', action='store_true', help='also with every block recomputed in the backward pass')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'benchmark')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results: Dict[str, List[Dict[str, Any]]] = {}
    for backbone in (b for b in BACKBONES if b.name in args.backbones):
        rows = []
        for row in (r for r in variants(args.methods) if backbone.name in r.get('on', BACKBONE)):
            for light in (False, True) if args.light else (False, ):
                rows.append(dict(name=row['name'] + (' light' if light else ''), row=row, light=light,
                                 **static_costs(backbone, row, args.sizes, light, args.batch)))
        if args.steps:
            timed(backbone, rows, args.sizes, args.batch, args.steps)
        results[backbone.name] = [{k: v for k, v in row.items() if k not in ('row', 'light')} for row in rows]
        show(rows, f'{backbone.title}, {args.sizes} size, batch {args.batch}, fp32')
        write_json(args.out / 'results.json', results)
    plot(results, args.out / 'kept_over_parameters.png')
    print(f'Written: {args.out}')


if __name__ == '__main__':
    main()
