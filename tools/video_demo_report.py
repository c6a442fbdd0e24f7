# SPDX-License-Identifier: Apache-2.0
"""Table and plot of the video demo's runs: python tools/video_demo_report.py WORK_DIR METHOD ...

Each folder WORK_DIR/METHOD holds what training and testing left: ``METHOD.py`` (the config as it ran),
``adapter.safetensors``, ``test.json`` (metrics of tools/test.py) and ``seconds`` (duration of the training). Writes
``WORK_DIR/results.json`` and ``WORK_DIR/accuracy_over_parameters.png``.
"""

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a checkout works without being installed
sys.path.insert(0, str(Path(__file__).resolve().parent))

from quickstart_report import plot, read_files, scored

from mmpetl.weights import write_json

LABELS = {
    'linear': 'linear probe',
    'lora': 'LoRA',
    'apt': 'APT',
    'patt_adaptformer': 'PATT + AdaptFormer',
    'full': 'full fine-tuning',
    'lora_untimed': 'LoRA, blind to order'
}
TASK = 'Motion6 (blind to the order of frames: about 50 % at best)'


def read_run(folder: Path) -> Dict[str, Any]:
    """What the report says of one run; see :func:`quickstart_report.read_files`."""
    from mmpetl.datasets.video_lists import read_video_list
    data, metrics, facts = read_files(folder, 'tools/video_demo.sh')
    videos = len(read_video_list(str(Path(data.data_root).expanduser() / data.ann_file)))
    return dict(method=LABELS.get(folder.name, folder.name), test_videos=videos, one_view=metrics['acc/view_top1'],
                motion_axis=metrics['acc/group_top1'], **facts, **scored(metrics['acc/top1'], videos))


def show_table(runs: List[Dict[str, Any]]) -> None:
    """Print the runs as a table."""
    from rich.console import Console
    from rich.table import Table
    table = Table(
        title=
        f'Inflated DINOv2 ViT-S/14 ({runs[0]["base"]:,} parameters) on Motion6, {runs[0]["test_videos"]} test clips',
        caption=
        'one view: mean accuracy of the 6 single views; axis: left or right, up or down, grow or shrink told apart')
    table.add_column('method')
    for name in ('trainable', '% of base', 'adapter file', 'accuracy, 6 views', 'one view', 'axis', 'training'):
        table.add_column(name, justify='right')
    for run in runs:
        table.add_row(run['method'], f'{run["trainable"]:,}', f'{run["percent_of_base"]:.2f}',
                      f'{run["adapter_bytes"] / 1e6:.2f} MB', f'{run["accuracy"]:.1%} ± {run["standard_error"]:.1%}',
                      f'{run["one_view"]:.1%}', f'{run["motion_axis"]:.1%}', f'{run["train_seconds"]} s')
    Console(width=None if sys.stdout.isatty() else 130).print(table)


def main() -> int:
    """Run the tool; 0 if all runs are complete, 1 otherwise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dir', type=Path, help='folder of the runs')
    parser.add_argument('methods', nargs='+', help='names of the runs')
    args = parser.parse_args()
    try:
        runs = [read_run(args.work_dir / method) for method in args.methods]
    except (KeyError, OSError, ValueError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    show_table(runs)
    picture = args.work_dir / 'accuracy_over_parameters.png'
    plot(runs, TASK, picture)
    write_json(args.work_dir / 'results.json', dict(task=TASK, runs=runs))
    print(f'plot: {picture}\nnumbers: {args.work_dir / "results.json"}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
