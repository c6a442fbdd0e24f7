# SPDX-License-Identifier: Apache-2.0
"""What a training step costs on cached features of the frozen base, against the same step with the base.

    python benchmarks/cached_ratio.py    ViT-B/16 at 224 px, batch 32: about four minutes on one CPU core
    python benchmarks/cached_ratio.py --arch small --img-size 112 --batch 8    smaller and quicker

A step is the forward pass, the loss, the backward pass and the update, and with cached features the fetching of the
rows; pictures are not read in either case. Both steps have the same settings (for SynQT and VQT ``context='kv'`` and
``checkpoint=False``, the fastest ones with a cache), start from the same numbers and draw the same random numbers; the
tool checks that their losses are equal. They take turns, and on a CPU the time that this process has computed counts,
so that a busy machine changes little. Weights are random, which changes no cost.
"""

import argparse
import statistics
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Dict, List

import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmpetl').is_dir():
    sys.path.insert(0, str(ROOT))

import mmpetl  # noqa: E402
from mmpetl.features.store import FeatureStore, Feed  # noqa: E402
from mmpetl.weights import write_json  # noqa: E402

METHODS: Dict[str, List[Dict[str, Any]]] = {
    'linear probe': [],
    'SynQT, P=16': [dict(type='SynQT', num_tokens=16, context='kv', checkpoint=False)],
    'SynQT, P=4': [dict(type='SynQT', num_tokens=4, context='kv', checkpoint=False)],
    'VQT, P=1': [dict(type='VQT', num_tokens=1, context='kv')],
    'LST, r=8': [dict(type='LST', reduction=8)],
}


class Classifier(nn.Module):
    """Backbone and linear head; the base runs without gradients where nothing in it trains."""

    def __init__(self, petl: List[Dict[str, Any]], arch: str, img_size: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = mmpetl.registry.MODELS.build(
            dict(type='mmpetl.VisionTransformer', arch=arch, img_size=img_size, patch_size=16, petl=petl))
        self.backbone.init_weights()
        side = self.backbone.petl.side_method()
        self.head = nn.Linear((side and side.out_dims) or self.backbone.embed_dims, 100)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x)[-1])


def step(model: Classifier, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, seed: int) -> float:
    """One training step -> its loss."""
    torch.manual_seed(seed)
    optimizer.zero_grad(set_to_none=True)
    loss = nn.functional.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step()
    return loss.item()


def measure(petl: List[Dict[str, Any]], args: argparse.Namespace, device: torch.device) -> Dict[str, Any]:
    """Median seconds of both steps and of their ratio; bytes of the cache per picture.

    Raises:
        RuntimeError: If the two steps do not have the same losses.
    """
    images = torch.randn(
        args.batch, 3, args.img_size, args.img_size, generator=torch.Generator().manual_seed(0)).to(device)
    labels = torch.arange(args.batch, device=device) % 100
    models = [Classifier(petl, args.arch, args.img_size).to(device).train() for _ in range(2)]
    optimizers = [
        torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-3, fused=True) for m in models
    ]
    feed = Feed(models[1].backbone)
    features = feed.capture(partial(models[1], images))
    store = FeatureStore(features, args.batch, args.batch, device)
    store.put(range(args.batch), features)
    del features
    taken: List[List[float]] = [[], []]
    for number in range(args.steps + 1):
        rows = torch.randperm(args.batch, generator=torch.Generator().manual_seed(number))
        losses = []
        for cached, (model, optimizer) in enumerate(zip(models, optimizers)):
            x, y = images[rows], labels[rows]
            began = _clock(device)
            if cached:
                feed.features = store.fetch(rows.tolist(), reuse=True)
            losses.append(step(model, optimizer, x, y, number))
            feed.features = None
            if number:  # the first step warms up
                taken[cached].append(_clock(device) - began)
        if abs(losses[0] - losses[1]) > 1e-4 * abs(losses[0]):
            raise RuntimeError(f'step {number}: loss {losses[0]} with the base and {losses[1]} with cached features')
    ratios = [a / b for a, b in zip(*taken)]
    return dict(
        uncached=statistics.median(taken[0]),
        cached=statistics.median(taken[1]),
        ratio=statistics.median(ratios),
        spread=(min(ratios), max(ratios)),
        bytes=store.nbytes / args.batch,
        place=store.place)


def _clock(device: torch.device) -> float:
    """Seconds; on a CPU those that this process has computed, so that other programs do not count."""
    if device.type != 'cuda':
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--methods', nargs='+', choices=list(METHODS), default=list(METHODS))
    parser.add_argument('--arch', choices=['small', 'base', 'large'], default='base')
    parser.add_argument('--img-size', type=int, default=224)
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--steps', type=int, default=3, help='timed steps, after one that warms up')
    parser.add_argument('--out', help='also write the numbers to this JSON file')
    args = parser.parse_args()
    from mmengine.logging import MMLogger
    MMLogger.get_instance('mmpetl', log_level='ERROR')
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    print(
        f'ViT-{args.arch}/16 at {args.img_size} px, batch {args.batch}, {device.type}, {torch.get_num_threads()} '
        f'threads'
    )
    print(f'{"method":<14}{"with base":>12}{"cached":>12}{"ratio":>8}{"(min-max)":>14}{"cache/picture":>16}')
    rows = {}
    for name in args.methods:
        rows[name] = row = measure(METHODS[name], args, device)
        spread = f'({row["spread"][0]:.1f}-{row["spread"][1]:.1f})'
        print(
            f'{name:<14}{1e3 * row["uncached"]:>9.0f} ms{1e3 * row["cached"]:>9.1f} ms{row["ratio"]:>8.1f}{spread:>14}'
            f'{row["bytes"] / 2**20:>12.3f} MiB',
            flush=True)
    if args.out:
        write_json(args.out, rows)


if __name__ == '__main__':
    main()
