# SPDX-License-Identifier: Apache-2.0
"""Table and plot of the quickstart's runs: python tools/quickstart_report.py WORK_DIR METHOD ...

Each folder WORK_DIR/METHOD holds what training and testing left: ``METHOD.py`` (the config as it ran),
``adapter.safetensors``, ``test.json`` (metrics of tools/test.py) and ``seconds`` (duration of the training). Writes
``WORK_DIR/results.json`` and ``WORK_DIR/accuracy_over_parameters.png``.
"""

import argparse
import math
import sys
from itertools import cycle
from pathlib import Path
from typing import Any, Dict, List, Tuple

if (Path(__file__).resolve().parents[1] / 'mmpetl').is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmpetl.weights import adapter_file, atomic_write, write_json
from mmpetl.weights.reading import read_json, read_text

LABELS = {
    'linear': 'linear probe',
    'lora': 'LoRA',
    'adaptformer': 'AdaptFormer',
    'lora_adaptformer': 'LoRA + AdaptFormer'
}


def read_files(folder: Path, script: str) -> Tuple[Any, Dict[str, float], Dict[str, Any]]:
    """Config of the test data, metrics, and facts of one run.

    Args:
        folder: Of the run.
        script: What makes it.

    Raises:
        FileNotFoundError: If the run is not complete; the missing file is named.
    """
    from mmengine.config import Config
    files = [folder / name for name in (f'{folder.name}.py', 'adapter.safetensors', 'test.json', 'seconds')]
    for path in files:
        if not path.is_file():
            raise FileNotFoundError(f'{path} does not exist: run bash {script}')
    counts = adapter_file.read_header(files[1])['counts']
    facts = dict(
        trainable=counts['total'],
        head=counts['head'],
        base=counts['base'],
        percent_of_base=100 * counts['total'] / counts['base'],
        adapter_bytes=files[1].stat().st_size,
        train_seconds=int(read_text(files[3])))
    return Config.fromfile(files[0]).test_dataloader.dataset, read_json(files[2]), facts


def scored(accuracy: float, samples: int) -> Dict[str, float]:
    """An accuracy in 0 to 1 with its standard error over test samples."""
    return dict(accuracy=accuracy, standard_error=math.sqrt(accuracy * (1 - accuracy) / samples))


def read_run(folder: Path) -> Dict[str, Any]:
    """What the report says of one run; see :func:`read_files`."""
    from mmpetl.registry import DATASETS
    data, metrics, facts = read_files(folder, 'tools/quickstart.sh')
    images = len(DATASETS.build({**data, 'pipeline': []}))
    return dict(method=LABELS.get(folder.name, folder.name), test_images=images, **facts,
                **scored(metrics['accuracy/top1'] / 100, images))


def show_table(runs: List[Dict[str, Any]], task: str) -> None:
    """Print the runs as a table."""
    from rich.console import Console
    from rich.table import Table
    table = Table(
        title=f'DINOv2 ViT-S/14 ({runs[0]["base"]:,} frozen parameters) on {task}, {runs[0]["test_images"]} test images'
    )
    table.add_column('method')
    for name in ('trainable', 'of them head', '% of base', 'adapter file', 'accuracy', 'training'):
        table.add_column(name, justify='right')
    for run in runs:
        table.add_row(run['method'], f'{run["trainable"]:,}', f'{run["head"]:,}', f'{run["percent_of_base"]:.2f}',
                      f'{run["adapter_bytes"] / 1e6:.2f} MB', f'{run["accuracy"]:.1%} ± {run["standard_error"]:.1%}',
                      f'{run["train_seconds"]} s')
    Console(width=None if sys.stdout.isatty() else 120).print(table)


def plot(runs: List[Dict[str, Any]], task: str, path: Path) -> None:
    """Draw accuracy over trainable parameters, with one standard error, and write it as PNG."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    from matplotlib.ticker import EngFormatter
    figure, axes = plt.subplots(figsize=(7, 5), dpi=150, layout='constrained')
    for run, marker in zip(runs, cycle('osD^vP')):
        axes.errorbar(
            run['trainable'],
            100 * run['accuracy'],
            100 * run['standard_error'],
            fmt=marker,
            markersize=8,
            capsize=4,
            label=f'{run["method"]}: {run["accuracy"]:.1%} with {run["trainable"]:,}')
    axes.set(
        xscale='log',
        xlabel='trainable parameters (head included)',
        ylabel='test accuracy in %, ± 1 standard error',
        title=f'DINOv2 ViT-S/14 on {task}')
    axes.margins(x=0.15)
    axes.xaxis.set_major_formatter(EngFormatter(sep=''))
    figure.legend(loc='outside lower center', ncols=2, fontsize='small')  # inside it would hide points
    axes.grid(True, alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)
    atomic_write(path, lambda file: figure.savefig(file, format='png'))
    plt.close(figure)


def main() -> int:
    """Run the tool; 0 if all runs are complete, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path, help='folder of the runs')
    parser.add_argument('methods', nargs='+', help='names of the runs')
    parser.add_argument('--task', default='Quick, Draw! (20 classes)', help='name of the data set, for the titles')
    args = parser.parse_args()
    try:
        runs = [read_run(args.work_dir / method) for method in args.methods]
    except (OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    show_table(runs, args.task)
    picture = args.work_dir / 'accuracy_over_parameters.png'
    plot(runs, args.task, picture)
    write_json(args.work_dir / 'results.json', dict(task=args.task, runs=runs))
    print(f'plot: {picture}\nnumbers: {args.work_dir / "results.json"}')
    probe, best = runs[0], max(runs[1:] or runs, key=lambda run: run['accuracy'])
    print(f'{best["method"]} is {100 * (best["accuracy"] - probe["accuracy"]):+.1f} points from the {probe["method"]} '
          f'(one standard error of either is {100 * probe["standard_error"]:.1f}).')
    return 0


if __name__ == '__main__':
    sys.exit(main())
