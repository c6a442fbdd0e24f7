# SPDX-License-Identifier: Apache-2.0
"""All methods side by side on real pretrained weights and real data, and two questions about published code.

    python tools/fetch_data.py dinov2-vits14 quickdraw20
    python benchmarks/compare_methods.py                      all three parts, about 20 minutes on two CPU cores
    python benchmarks/compare_methods.py --parts kadaptation pruning

DINOv2 ViT-S/14 at 56 px on Quick, Draw! (20 classes). Parts:

* ``methods``: accuracy, parameters and kept bytes of every method;
* ``kadaptation``: our form against the published one, whose factors never train;
* ``pruning``: E2VPT tokens removed by the measured loss of removal, by attention gates, by the published signed score,
  and at random.

Every method has one learning rate, chosen by kind and not tuned, and training is short: the numbers compare methods
under equal, small budgets; they are no best results.
"""

import argparse
import copy
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmpetl').is_dir():
    sys.path.insert(0, str(ROOT))

import mmpetl  # noqa: E402
from mmpetl.costs.memory import saved_bytes  # noqa: E402
from mmpetl.pruning.scores import PromptScorer  # noqa: E402
from mmpetl.weights import atomic_write, write_json  # noqa: E402

SIZE, CLASSES, BATCH = 56, 20, 32
METHODS: List[Tuple[str, List[Dict[str, Any]], List[str], float]] = [
    ('linear probe', [], [], 1e-2),
    ('BitFit', [], ['*bias'], 3e-3),
    ('LayerNorm', [], ['*ln*'], 3e-3),
    ('full', [], ['*'], 1e-4),
    ('LoRA', [dict(type='LoRA', rank=8, alpha=16, ops='qkv')], [], 3e-3),
    ('Adapter', [dict(type='Adapter', mid_dims=32)], [], 3e-3),
    ('AdaptFormer', [dict(type='AdaptFormer', mid_dims=64)], [], 3e-3),
    ('PATT', [dict(type='PATT', mid_dims=32, init='zero_up')], [], 3e-3),
    ('Prefix', [dict(type='Prefix', num_tokens=10, mid_dims=64)], [], 1e-3),
    ('VPT', [dict(type='VPT', num_tokens=10)], [], 3e-3),
    ('E2VPT', [dict(type='E2VPT', num_tokens=10, num_kv_tokens=5)], [], 3e-3),
    ('APT', [dict(type='APT', num_tokens=20)], [], 3e-3),
    ('KAdaptation', [dict(type='KAdaptation')], [], 3e-3),
    ('Compacter', [dict(type='Compacter', mid_dims=64)], [], 5e-4),
    ('SSF', [dict(type='SSF')], [], 3e-3),
    ('Convpass', [dict(type='Convpass')], [], 5e-4),
    ('FacT-TT', [dict(type='FacT', kind='tt', rank=16)], [], 3e-3),
    ('FacT-TK', [dict(type='FacT', kind='tk', rank=16)], [], 3e-3),
    ('SynQT', [dict(type='SynQT', num_tokens=4)], [], 1e-3),
    ('LST', [dict(type='LST', reduction=8)], [], 1e-3),
    ('VQT', [dict(type='VQT', num_tokens=4)], [], 3e-3),
]


class Classifier(BaseModel):
    """Backbone and linear head; in 'loss' mode it is what the prompt scorer calls."""

    def __init__(self, petl: Sequence[Any], tune: Sequence[str], seed: int) -> None:
        super().__init__()
        from mmengine.config import Config
        cfg = Config.fromfile(str(ROOT / 'configs/_base_/backbones/dinov2-small.py')).model.backbone.to_dict()
        torch.manual_seed(seed)
        self.backbone = mmpetl.registry.MODELS.build({**cfg, 'img_size': SIZE, 'petl': list(petl), 'tune': list(tune)})
        self.backbone.init_weights()
        side = self.backbone.petl.side_method()
        self.head = nn.Linear((side and side.out_dims) or 384, CLASSES)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, inputs: Tensor, data_samples: Any = None, mode: str = 'tensor') -> Any:
        logits = self.head(self.backbone(inputs)[-1].clone())
        if mode != 'loss':
            return logits
        return dict(loss=nn.functional.cross_entropy(logits, data_samples))


def load(name: str) -> Tuple[Tensor, Tensor]:
    """Images (N, 3, 56, 56), normalised, and labels of one list file of the fetched drawings."""
    import os

    import cv2
    import numpy as np
    root = Path(os.environ.get('MMPETL_CACHE', '~/.cache/mmpetl')).expanduser() / 'quickdraw20'
    if not (root / name).is_file():
        raise SystemExit(f'{root / name} does not exist: run python tools/fetch_data.py dinov2-vits14 quickdraw20')
    rows = [line.rsplit(' ', 1) for line in (root / name).read_text().splitlines()]
    images = np.stack([cv2.resize(cv2.imread(str(root / path)), (SIZE, SIZE)) for path, _ in rows])[..., ::-1].copy()
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    mean, std = (torch.tensor(t).view(1, 3, 1, 1) for t in ([123.675, 116.28, 103.53], [58.395, 57.12, 57.375]))
    return (x - mean) / std, torch.tensor([int(label) for _, label in rows])


def fit(model: Classifier, data: Tuple[Tensor, Tensor], lr: float, epochs: int, seed: int) -> None:
    """AdamW, one tenth warm-up, cosine."""
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(data[0]) // BATCH)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(data[0]), generator=generator).split(BATCH):
            optimizer.zero_grad()
            model(data[0][index], data[1][index], 'loss')['loss'].backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(model: Classifier, data: Tuple[Tensor, Tensor]) -> float:
    """Top-1 in percent."""
    model.eval()
    right = sum((model(x).argmax(1) == y).sum().item() for x, y in zip(data[0].split(100), data[1].split(100)))
    return 100 * right / len(data[0])


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f'{statistics.mean(values):.1f}' + (f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else '')


def compare_methods(train: Any, test: Any, epochs: int, seeds: int) -> List[Dict[str, Any]]:
    """Part ``methods``."""
    rows = []
    for name, petl, tune, lr in METHODS:
        began, scores = time.time(), []
        for seed in range(seeds):
            model = Classifier(petl, tune, seed)
            fit(model, train, lr, epochs, seed)
            scores.append(accuracy(model, test))
        counted = mmpetl.summary(model)
        rows.append(dict(name=name, accuracy=scores, parameters=counted.without_head, head=counted.head, lr=lr,
                         kept_bytes=saved_bytes(copy.deepcopy(model).train().to('meta'), train[0][:8].to('meta')) // 8))
        print(
            f'{name:<14}{spread(scores):>14} %{counted.without_head:>14,}{rows[-1]["kept_bytes"] / 2**20:>10.2f} '
            f'MiB/image'
            f'{time.time() - began:>8.0f} s',
            flush=True)
    return rows


def compare_kadaptation(train: Any, test: Any, epochs: int, seeds: int) -> List[Dict[str, Any]]:
    """Part ``kadaptation``: our form, and the published one at its own and at our learning rates."""
    rows = []
    for variant in ('paper', 'released'):
        for lr in (1e-3, 3e-3):
            scores, moved = [], []
            for seed in range(seeds):
                model = Classifier([dict(type='KAdaptation', variant=variant)], [], seed)
                before = {n: p.detach().clone() for n, p in model.backbone.petl.named_parameters()}
                fit(model, train, lr, epochs, seed)
                scores.append(accuracy(model, test))
                moved.append(sum(p.numel() for n, p in model.backbone.petl.named_parameters()
                                 if (p - before[n] * (1 - lr * 0.01)).abs().max() > 1e-4))
            rows.append(
                dict(
                    variant=variant, lr=lr, accuracy=scores, parameters=mmpetl.summary(model).without_head,
                    moved=moved))
            print(
                f'{variant:<10} lr {lr:g}  {spread(scores):>14} %   of {rows[-1]["parameters"]:,} numbers '
                f'{moved[-1]:,} '
                'in tensors that moved',
                flush=True)
    return rows


def compare_pruning(train: Any, test: Any, epochs: int, seeds: int) -> List[Dict[str, Any]]:
    """Part ``pruning``: remove tokens of one trained E2VPT by four orders, without training on."""
    total, results = 20, {}
    batches = [dict(inputs=x, data_samples=y) for x, y in zip(train[0].split(BATCH), train[1].split(BATCH))]
    for seed in range(seeds):
        model = Classifier([dict(type='E2VPT', num_tokens=total, num_kv_tokens=2)], [], seed)
        fit(model, train, 3e-3, epochs, seed)
        scores = {'loss of removal': PromptScorer().score(model, batches),
                  'attention gates': PromptScorer(target='attention').score(model, batches),
                  'published score': PromptScorer(variant='released').score(model, batches)}
        generator = torch.Generator().manual_seed(seed)
        chance = copy.deepcopy(scores['attention gates'])
        chance.tokens = torch.rand(total, generator=generator)
        scores['random'] = chance
        results.setdefault(('none', 0), []).append(_losses(model, train, test))
        for name, score in scores.items():
            for pruned in (total // 4, total // 2, 3 * total // 4):
                smaller = copy.deepcopy(model)
                keep, segments = score.choose(pruned, 0)
                method = smaller.backbone.petl['e2vpt']
                method.prune(keep, segments)
                smaller.backbone.petl.refresh()
                results.setdefault((name, pruned), []).append(_losses(smaller, train, test))
        print(f'seed {seed} done', flush=True)
    rows = []
    for (name, pruned), values in results.items():
        rows.append(
            dict(
                order=name, pruned=pruned, of=total, train_loss=[v[0] for v in values],
                accuracy=[v[1] for v in values]))
        print(
            f'{name:<16} {pruned:>2} of {total} tokens removed: train loss '
            f'{statistics.mean(rows[-1]["train_loss"]):.4f}, '
            f'test accuracy {spread(rows[-1]["accuracy"])} %',
            flush=True)
    return rows


@torch.no_grad()
def _losses(model: Classifier, train: Any, test: Any) -> Tuple[float, float]:
    model.eval()
    loss = sum(model(x, y, 'loss')['loss'].item() * len(x)
               for x, y in zip(train[0].split(100), train[1].split(100))) / len(train[0])
    return loss, accuracy(model, test)


def plot(rows: List[Dict[str, Any]], path: Path) -> None:
    """Accuracy over kept bytes, size of the points by parameters."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(figsize=(8, 5), dpi=150, layout='constrained')
    for row in rows:
        x, y = row['kept_bytes'] / 2**20, statistics.mean(row['accuracy'])
        axes.scatter(x, y, s=8 + row['parameters']**0.5 / 12, alpha=0.6)
        axes.annotate(row['name'], (x, y), (5, 4), textcoords='offset points', fontsize=8)
    axes.set(xlabel='MiB kept for the backward pass per image', ylabel='test accuracy in %', xscale='symlog',
             title='DINOv2 ViT-S/14, 56 px, Quick, Draw! (20 classes); area of a point: parameters')
    axes.grid(True, alpha=0.25)
    atomic_write(path, lambda file: figure.savefig(file, format='png'))
    plt.close(figure)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--parts',
        nargs='+',
        choices=['methods', 'kadaptation', 'pruning'],
        default=['kadaptation', 'pruning', 'methods'])
    parser.add_argument('--images', type=int, default=400, help='training images (20 classes, taken evenly)')
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'compare_methods')
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    from mmengine.logging import MMLogger
    MMLogger.get_instance('mmpetl', log_level='ERROR')
    images, labels = load('train.txt')
    order = torch.cat([torch.where(labels == c)[0][:args.images // CLASSES] for c in range(CLASSES)])
    train, test = (images[order], labels[order]), load('test.txt')
    parts = dict(kadaptation=compare_kadaptation, pruning=compare_pruning, methods=compare_methods)
    path = args.out / 'results.json'
    results = json.loads(path.read_text()) if path.is_file() else {}
    for name in args.parts:
        print(
            f'-- {name}: {len(train[0])} training and {len(test[0])} test images, {args.epochs} epochs, {args.seeds} '
            f'seeds',
            flush=True)
        rows = parts[name](train, test, args.epochs, args.seeds)
        results[name] = dict(images=len(train[0]), epochs=args.epochs, seeds=args.seeds, rows=rows)
        write_json(path, results)
    if 'methods' in args.parts:
        plot(results['methods']['rows'], args.out / 'accuracy_over_memory.png')
    print(f'Written: {path}')


if __name__ == '__main__':
    main()
