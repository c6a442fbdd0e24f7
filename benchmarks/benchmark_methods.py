# SPDX-License-Identifier: Apache-2.0
"""All methods on real weights and real pictures, three seeds each, by the machinery of ``mmpetl sweep``.

    python tools/fetch_data.py dinov2-vits14 small-suite
    python benchmarks/benchmark_methods.py      hours on one CPU core; the same command goes on where it was cut
    python benchmarks/benchmark_methods.py --methods LoRA 'E2VPT, 5 tokens' --tasks digits --minutes 20
    mmpetl report work_dirs/numbers --out work_dirs/numbers/report

The recipe is configs/small_suite/numbers.py; one worker process runs everything, in the order of ``STAGES``: every
method on the digits, what the two questions about published code need on the X-rays, then the rest. Every method has
one learning rate, chosen by kind and not tuned, and training is short: the numbers compare methods under equal, small
budgets; they are no best results.
"""

import argparse
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[1]
if (ROOT / 'mmpetl').is_dir():
    sys.path.insert(0, str(ROOT))

from mmpetl.datasets.tables import get_suite  # noqa: E402
from mmpetl.names import plain_name  # noqa: E402
from mmpetl.sweeps.claims import Claim  # noqa: E402
from mmpetl.sweeps.plan import make_plan, units, write_text  # noqa: E402
from mmpetl.sweeps.trial import describe  # noqa: E402
from mmpetl.sweeps.workers import Worker  # noqa: E402
from mmpetl.weights.io import atomic_write  # noqa: E402

SUITE = ROOT / 'configs' / 'small_suite' / 'suite.json'
BASE = ROOT / 'configs' / 'small_suite' / 'numbers.py'
PIPELINE = [
    dict(type='mmpetl.LoadImage'),
    dict(type='Resize', scale=(42, 42), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs')
]


class Method(NamedTuple):
    """One row of the table.

    Attributes:
        petl: Methods of the backbone.
        lr: Learning rate of the method for batches of 32, halved for those of 16; the head's is three times that.
        tune: Patterns of base parameters that train.
        cached_epochs: Epochs on cached features; 0: one epoch without a cache.
        more: Further entries of the config.
    """
    petl: Sequence[Dict[str, Any]]
    lr: float
    tune: Sequence[str] = ()
    cached_epochs: int = 0
    more: Dict[str, Any] = {}


def pruned(**scorer: Any) -> Dict[str, Any]:
    """Train with 10 tokens, score them on 200 of the training images, remove 5, rewind, train again."""
    suite = get_suite(str(SUITE))
    loaders = {task: [dict(batch_size=40, num_workers=0, dataset=dict(
        type='mmpetl.ListDataset', data_root=os.path.join(os.path.expanduser(suite.root), task), ann_file='val200.txt',
        pipeline=PIPELINE))] for task in suite.tasks}
    return dict(train_cfg=dict(_delete_=True, type='mmpetl.E2VPTLoop', max_epochs=1, val_interval=1, tokens=5,
                               segments=0, scorer=scorer, score_dataloader=loaders['quickdraw'][0]),
                per_task=dict(columns=['train_cfg.score_dataloader'], rows=loaders))


def e2vpt(tokens: int) -> List[Dict[str, Any]]:
    """E2VPT with five key/value prompts."""
    return [dict(type='E2VPT', num_tokens=tokens, num_kv_tokens=5)]


METHODS: Dict[str, Method] = {
    'Linear': Method([], 3e-3, cached_epochs=20),
    'LoRA': Method([dict(type='LoRA', rank=8, alpha=16, ops='qkv')], 3e-3),
    'AdaptFormer': Method([dict(type='AdaptFormer', mid_dims=64)], 3e-3),
    'VPT': Method([dict(type='VPT', num_tokens=10)], 3e-3),
    'E2VPT': Method(e2vpt(10), 3e-3),
    'KAdaptation': Method([dict(type='KAdaptation')], 3e-3),
    'KAdaptation, released': Method([dict(type='KAdaptation', variant='released')], 3e-3),
    'SynQT': Method([dict(type='SynQT', num_tokens=4)], 1e-3),
    'PATT': Method([dict(type='PATT', mid_dims=32, init='zero_up')], 3e-3),
    'APT': Method([dict(type='APT', num_tokens=20)], 3e-3),
    'Full': Method([], 1e-4, tune=['*']),
    'BitFit': Method([], 3e-3, tune=['*bias']),
    'Adapter': Method([dict(type='Adapter', mid_dims=32)], 3e-3),
    'SSF': Method([dict(type='SSF')], 3e-3),
    'FacT-TK': Method([dict(type='FacT', kind='tk', rank=16)], 3e-3),
    'Convpass': Method([dict(type='Convpass')], 5e-4),
    'Compacter': Method([dict(type='Compacter', mid_dims=64)], 5e-4),
    'Prefix': Method([dict(type='Prefix', num_tokens=10, mid_dims=64)], 1e-3),
    'LST': Method([dict(type='LST', reduction=8)], 1e-3),
    'VQT': Method([dict(type='VQT', num_tokens=4)], 3e-3),
    'DoRA': Method([dict(type='DoRA', rank=8, alpha=16, ops='qkv')], 3e-3),
    'VeRA': Method([dict(type='VeRA', rank=256, ops='qv')], 1e-2),
    'IA3': Method([dict(type='IA3', ops='kv'), dict(type='IA3', ops='fc2', at='input', name='ia3_ff')], 1e-2),
    'AdapterPlus': Method([dict(type='AdapterPlus', mid_dims=8)], 3e-3),
    'LayerNorm': Method([], 3e-3, tune=['*ln*']),
    'FacT-TT': Method([dict(type='FacT', kind='tt', rank=16)], 3e-3),
    'E2VPT, 5 tokens': Method(e2vpt(5), 3e-3),
    'E2VPT, pruned': Method(e2vpt(10), 3e-3, more=pruned()),
    'E2VPT, pruned as published': Method(e2vpt(10), 3e-3, more=pruned(variant='released')),
}
#: Rows that answer the two questions about published code.
RULES = ['KAdaptation', 'KAdaptation, released']
PRUNED = ['E2VPT, 5 tokens', 'E2VPT, pruned', 'E2VPT, pruned as published']
#: (tasks, methods) in the order of work: what stands first is there first if the time is short.
STAGES: List[Tuple[List[str], List[str]]] = [
    (['digits'], [name for name in METHODS if name not in PRUNED]), (['pneumonia'], RULES), (['digits'], PRUNED),
    (['pneumonia'], PRUNED), (['pneumonia', 'quickdraw', 'dsprites_loc'], list(METHODS))]


def config_text(name: str) -> str:
    """The config of a row: the shared recipe, the method and its rate."""
    method = METHODS[name]
    lines = [f'_base_ = {str(BASE)!r}',
             f'model = dict(backbone=dict(petl={list(method.petl)!r}, tune={list(method.tune)!r}))',
             f'optim_wrapper = dict(optimizer=dict(lr={method.lr / 2:g}))']
    if method.cached_epochs:
        n = method.cached_epochs
        lines += [f'train_cfg = dict(max_epochs={n}, val_interval={n})',
                  'param_scheduler = [',
                  f"    dict(type='LinearLR', start_factor=0.1, end={0.1 * n:g}, convert_to_iter_based=True),",
                  f"    dict(type='CosineAnnealingLR', begin={0.1 * n:g}, convert_to_iter_based=True)]",
                  "custom_hooks = [dict(type='mmpetl.AdapterHook'), dict(type='mmpetl.GradientAuditHook'),",
                  "                dict(type='mmpetl.FeatureCacheHook')]"]
    lines += [f'{key} = {value!r}' for key, value in method.more.items()]
    return '\n'.join(lines) + '\n'


def run_method(name: str, tasks: Sequence[str], out: Path, worker: Worker, until: float) -> None:
    """What a method lacks on these tasks."""
    stem = plain_name(name.replace(', ', '_').replace(' ', '_').lower(), 'method')
    config = out / 'configs' / f'{name}.py'
    atomic_write(config, partial(write_text, config_text(name)))
    folder = str(out / stem)
    plan = make_plan(str(config), folder, str(SUITE), list(tasks))
    for unit in units(plan, folder):
        for trial in unit.waiting() if unit.task in tasks else []:
            with_claim = Claim(unit.folder(trial))
            if time.time() > until or not with_claim.acquire():
                continue
            with with_claim:
                print(f'{name}: {describe(trial, worker.run(plan, trial, unit.folder(trial)))}', flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--methods', nargs='+', choices=METHODS, metavar='NAME', help='rows of the table; default all')
    parser.add_argument('--tasks', nargs='+', help='data sets; default all, in the order of STAGES')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='start no run after so many minutes')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'numbers')
    args = parser.parse_args()
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    until, worker = time.time() + 60 * args.minutes, Worker()
    try:
        for tasks, names in STAGES:
            for name in names:
                if name in (args.methods or names) and set(tasks) & set(args.tasks or tasks):
                    run_method(name, [t for t in tasks if t in (args.tasks or tasks)], args.out, worker, until)
    finally:
        worker.close()
    print(f'mmpetl report {args.out}')


if __name__ == '__main__':
    main()
