# SPDX-License-Identifier: Apache-2.0
"""Decoding and training steps against stock mmaction2, in one run: python benchmarks/video_throughput.py [VIDEO ...]
[--rounds 5]

Without videos it makes one of 300 frames of 320 x 240 pixels. Decoding: the views of a test (5 clips of 16 frames x 3
crops) and two augmented copies for training, from opening the file to the packed tensor. Steps: forward and backward of
VideoMAE (full fine-tuning by stock mmaction2, then by mmpetl, then APT, LoRA and a linear probe by mmpetl) on the same
random clips. The variants take turns in every round, and the fastest round of each counts, so that other work on the
machine disturbs all of them alike.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

if (Path(__file__).resolve().parents[1] / 'mmpetl').is_dir():  # a checkout works without being installed
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from mmengine.registry import DATASETS, MODELS, init_default_scope

import mmpetl  # noqa: F401

PACK = [dict(type='FormatShape', input_format='NCTHW'), dict(type='PackActionInputs')]
CROP = [dict(type='RandomResizedCrop'), dict(type='Resize', scale=(224, 224), keep_ratio=False), *PACK]
OURS = [dict(type='mmpetl.VideoInit'), dict(type='mmpetl.VideoDecode')]
STOCK = [dict(type='DecordInit'), dict(type='DecordDecode')]


def make_video(folder: Path) -> Path:
    """A clip with moving noise, which compresses about as badly as a film."""
    import cv2
    path, rng = folder / 'noise.mp4', np.random.default_rng(0)
    texture = cv2.GaussianBlur(rng.integers(0, 256, (480, 640, 3), dtype=np.uint8), (0, 0), 3)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*'mp4v'), 25, (320, 240))
    for t in range(300):
        y, x = int(120 + 100 * np.sin(t / 40)), int(160 + 140 * np.cos(t / 30))
        writer.write(np.ascontiguousarray(texture[y:y + 240, x:x + 320]))
    writer.release()
    return path


def datasets(videos: List[Path], folder: Path) -> Dict[str, Any]:
    """What is decoded: name -> data set."""
    listed = folder / 'list.txt'
    listed.write_text(''.join(f'{video.resolve()} 0\n' for video in videos))
    dense = dict(type='SampleFrames', clip_len=16, frame_interval=4, num_clips=1, out_of_bound_opt='repeat_last')
    views = dict(
        type='SampleFrames', clip_len=16, frame_interval=4, num_clips=5, test_mode=True, out_of_bound_opt='repeat_last')
    init_default_scope('mmaction')

    def build(kind: str, pipeline: List[dict], **options: Any) -> Any:
        return DATASETS.build(
            dict(type=kind, ann_file=str(listed), data_prefix=dict(video=''), pipeline=pipeline, **options))

    return {
        'test, 5 clips x 3 crops: mmaction2':
        build(
            'VideoDataset', [
                STOCK[0], views, STOCK[1],
                dict(type='Resize', scale=(-1, 224)),
                dict(type='ThreeCrop', crop_size=224), *PACK
            ],
            test_mode=True),
        'test, 5 clips x 3 crops: mmpetl':
        build(
            'mmpetl.VideoListDataset',
            [OURS[0], views, OURS[1],
             dict(type='mmpetl.ShortSideResize'),
             dict(type='mmpetl.ViewCrops'), *PACK],
            test_mode=True),
        'training, 2 copies: mmaction2':
        build('RepeatAugDataset', [STOCK[0], dense, STOCK[1], *CROP], num_repeats=2, sample_once=True),
        'training, 2 copies: mmpetl':
        build('mmpetl.VideoListDataset', [OURS[0], dense, OURS[1], *CROP], num_repeats=2),
    }


def steps(size: int, batch: int, depth: int) -> Dict[str, Callable[[], None]]:
    """What is trained: name -> one forward and backward pass."""
    arch = dict(
        img_size=size,
        patch_size=16,
        embed_dims=384,
        depth=depth,
        num_heads=6,
        num_frames=16,
        norm_cfg=dict(type='LN', eps=1e-6))
    variants = {
        'step, full: mmaction2': dict(type='mmaction.VisionTransformer', **arch),
        'step, full: mmpetl': dict(type='mmpetl.VideoMAE', tune=['*'], **arch),
        'step, APT 100: mmpetl': dict(type='mmpetl.VideoMAE', petl=[dict(type='APT', num_tokens=100)], **arch),
        'step, LoRA 8 on q, v: mmpetl': dict(type='mmpetl.VideoMAE', petl=[dict(type='LoRA', rank=8)], **arch),
        'step, linear: mmpetl': dict(type='mmpetl.VideoMAE', **arch),
    }
    clips = torch.randn(batch, 3, 16, size, size)

    def step_of(config: dict) -> Callable[[], None]:
        model, head = MODELS.build(config), torch.nn.Linear(384, 10)
        model.train()

        def step() -> None:
            head(model(clips)).sum().backward()
            model.zero_grad(set_to_none=True)

        return step

    return {name: step_of(config) for name, config in variants.items()}


def fastest(runs: Dict[str, Callable[[], Any]], rounds: int) -> Dict[str, float]:
    """Seconds of the fastest of ``rounds`` calls of each, taken in turns after one call that does not count."""
    best = {name: float('inf') for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if number:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('videos', nargs='*', type=Path)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--size', type=int, default=112, help='pixels of the clips of the training steps (default 112)')
    parser.add_argument('--batch', type=int, default=2, help='clips per training step (default 2)')
    parser.add_argument(
        '--depth', type=int, default=12, help='blocks of the model of the training steps (default 12, ViT-S)')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        videos = args.videos or [make_video(Path(folder))]
        loads = {
            name: (lambda data=data: [data[i] for i in range(len(data))])
            for name, data in datasets(videos, Path(folder)).items()
        }
        found = {name: seconds / len(videos) for name, seconds in fastest(loads, args.rounds).items()}
        trained = fastest(steps(args.size, args.batch, args.depth), args.rounds)
        found.update({name: seconds / args.batch for name, seconds in trained.items()})
    stock: Dict[str, float] = {}
    for name, seconds in found.items():
        what, _, who = name.partition(': ')
        if who == 'mmaction2':
            stock[what] = seconds
        base = stock.get(what, stock.get('step, full') if what.startswith('step') else None)
        ratio = '' if who == 'mmaction2' or base is None else f'{base / seconds:6.2f} x stock'
        print(f'{name:42} {1000 * seconds:9.1f} ms per video   {ratio}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
