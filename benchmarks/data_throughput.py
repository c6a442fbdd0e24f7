# SPDX-License-Identifier: Apache-2.0
"""Decoding, cache and transforms against the stock pipelines, and whether a device would wait.

    python benchmarks/data_throughput.py [--rounds 5]

Images: the training pipelines of the VTAB-1k and FGVC recipes on made JPEG files of 500 x 375 pixels, against
mmpretrain's CustomDataset and LoadImageFromFile with the same transforms behind; cached rows read what the first pass
kept. Videos: as benchmarks/video_throughput.py. Variants take turns in every round. The last table compares one
training step of a published recipe, measured here on the first device that torch has, with the time that one loader
worker needs for as many samples: a device waits where the ratio is below one over the workers of the recipe. Writes
data.json.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import numpy as np
import torch
from benchmark_costs import ROOT, build, device, hardware, interleave, ratio, results_folder, seconds, train_step
from benchmark_report import print_table, spread
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from video_throughput import datasets as video_datasets
from video_throughput import make_video

from mmpetl.weights import write_json

#: Recipe -> (data config, backbone of the table, methods, shape of one sample, batch of the recipe).
RECIPES: Dict[str, Any] = {
    'VTAB-1k, VPT-deep 50, ViT-B': ('vtab', 'vit', [dict(type='VPT', num_tokens=50)], (3, 224, 224)),
    'VTAB-1k cached, linear probe, ViT-B': ('vtab cached', 'vit', [], (3, 224, 224)),
    'FGVC, E2VPT, ViT-B': ('fgvc', 'vit', [dict(type='E2VPT', num_tokens=10)], (3, 224, 224)),
    'UCF101, APT 400, VideoMAE-B': ('training, 2 copies', 'videomae', [dict(type='APT',
                                                                            num_tokens=400)], (3, 16, 224, 224)),
}
CONFIGS = {'vtab': 'vtab', 'vtab cached': 'vtab', 'fgvc': 'fgvc', 'training, 2 copies': 'ucf101_16x4'}


def make_images(folder: Path, count: int) -> List[str]:
    """JPEG files with blurred noise, which compresses about as badly as a photograph; lines of a list file."""
    import cv2
    rng = np.random.default_rng(0)
    for i in range(count):
        image = cv2.GaussianBlur(rng.integers(0, 256, (375, 500, 3), dtype=np.uint8), (0, 0), 1.5)
        cv2.imwrite(str(folder / f'{i}.jpg'), image)
    lines = [f'{i}.jpg 0' for i in range(count)]
    (folder / 'list.txt').write_text('\n'.join(lines))
    return lines


def pipeline_of(name: str) -> List[Dict[str, Any]]:
    """Training pipeline of a data config, ours."""
    dataset = Config.fromfile(str(ROOT / 'configs' / '_base_' / 'datasets' / f'{name}.py')).train_dataloader.dataset
    return [dict(t) for t in dataset.get('dataset', dataset).pipeline]


def image_datasets(folder: Path, count: int) -> Dict[str, Any]:
    """What is read: 'recipe: who' -> data set."""
    make_images(folder, count)
    init_default_scope('mmpretrain')
    found: Dict[str, Any] = {}
    for name in ('vtab', 'fgvc'):
        ours = pipeline_of(name)
        stock = [dict(type='LoadImageFromFile'), *ours[1:]]
        common = dict(ann_file='list.txt', data_root=str(folder), data_prefix='')
        found[f'{name}: stock'] = DATASETS.build(dict(type='CustomDataset', pipeline=stock, **common))
        found[f'{name}: mmpetl'] = DATASETS.build(dict(type='mmpetl.ListDataset', pipeline=ours, **common))
        if name == 'vtab':
            quick = [dict(ours[0], imdecode_backend='cv2'), *ours[1:]]
            found['vtab, decoded by OpenCV: mmpetl'] = DATASETS.build(
                dict(type='mmpetl.ListDataset', pipeline=quick, **common))
            inner = dict(type='mmpetl.ListDataset', pipeline=ours, **common)
            found['vtab cached: mmpetl'] = DATASETS.build(dict(type='mmpetl.CachedDataset', dataset=inner, max_gib=1.))
    return found


def read_all(data: Any) -> None:
    """Every sample once."""
    for i in range(len(data)):
        data[i]


def throughput(folder: Path, count: int, rounds: int) -> Tuple[List[List[str]], Dict[str, float]]:
    """Rows of the first table, and median seconds per sample of our pipelines (videos: per augmented copy)."""
    sets = image_datasets(folder, count)
    runs: Dict[str, Callable[[], None]] = {name: (lambda d=d: read_all(d)) for name, d in sets.items()}
    took = interleave(runs, rounds, 'images')
    init_default_scope('mmaction')
    videos = {name.replace('mmaction2', 'stock'): d for name, d in video_datasets([make_video(folder)], folder).items()}
    took.update(interleave({name: (lambda d=d: read_all(d)) for name, d in videos.items()}, rounds, 'videos'))
    rows, each = [], {}
    for name, times in took.items():
        what, _, who = name.rpartition(': ')
        samples = count if name in sets else 2 if 'copies' in what else 1
        if who == 'mmpetl':
            stock = took.get(f'{what}: stock', took['vtab: stock'])
            rows.append([what, spread(ratio(stock, times))])
            each[what] = sorted(times)[len(times) // 2] / samples
    return rows, each


def waiting(each: Dict[str, float], batch: int) -> List[List[str]]:
    """Rows of the second table: does a device wait for the loader?"""
    from cases import BACKBONE
    rows = []
    for recipe, (data, kind, petl, shape) in RECIPES.items():
        loader = Config.fromfile(str(ROOT / 'configs' / '_base_' / 'datasets' / f'{CONFIGS[data]}.py')).train_dataloader
        size = batch if len(shape) == 3 else 1
        model = build(BACKBONE[kind], dict(petl=petl)).to(device())
        x = torch.randn(size, *shape, device=device())

        def step(model: Any = model, x: Any = x, train: bool = bool(petl)) -> None:
            if train:
                train_step(model, x)
            else:
                with torch.no_grad():
                    model(x)

        seconds(step)
        step_time = seconds(step) / size
        share = step_time / each[data]
        rows.append([recipe, str(loader.num_workers), f'{share:.1f}', f'{share * loader.num_workers:.1f}',
                     'no' if share * loader.num_workers >= 1 else 'yes'])
    return rows


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--images', type=int, default=48)
    parser.add_argument(
        '--batch', type=int, default=2, help='images of a timed training step; clips are taken one by one')
    parser.add_argument('--skip-steps', action='store_true', help='only the pipelines')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'benchmark')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, each = throughput(Path(folder), args.images, args.rounds)
    tables = [
        dict(
            title='Pipelines',
            header=['samples per second of one worker', 'over stock'],
            rows=rows,
            note='Stock: mmpretrain for images (the cached row over the uncached stock pipeline), mmaction2 for '
                 'videos. '
            'Stock decodes images by OpenCV; the recipes decode by Pillow, as the papers do, which takes longer.')
    ]
    if not args.skip_steps:
        header = ['recipe', 'workers', 'step / one worker', 'step / all workers', 'device waits']
        note = (
            'Time of a training step per sample on this device over the loading time of a sample; workers of the '
            'recipe, each on a '
            'core of its own. Another device waits when it is faster than this one by more than the fourth column.')
        tables.append(dict(title='Does the device wait?', header=header, rows=waiting(each, args.batch), note=note))
    for table in tables:
        print_table(table['title'], table['header'], table['rows'])
    folder = results_folder(args.out)
    settings = f'{args.images} images, one video, {args.rounds} rounds'
    write_json(folder / 'data.json', dict(hardware=hardware(), settings=settings, tables=tables))
    print(f'Written: {folder / "data.json"}')


if __name__ == '__main__':
    main()
