# SPDX-License-Identifier: Apache-2.0
"""All methods on real weights and real pictures, three seeds each, by the machinery of ``mmpetl sweep``.

    python tools/fetch_data.py dinov2-vits14 small-suite
    python benchmarks/benchmark_methods.py      hours on one CPU core; the same command goes on where it was cut
    python benchmarks/benchmark_methods.py --methods LoRA 'E2VPT, 5 tokens' --tasks digits --minutes 20
    python benchmarks/benchmark_methods.py --write          what is measured, into docs/numbers.md
    mmpetl report work_dirs/numbers --tasks digits --out work_dirs/numbers/report

The recipe is configs/small_suite/numbers.py; one worker process runs everything, in the order of ``STAGES``: every
method on the digits, what the two questions about published code need on the X-rays, then the rest. Every method has
one learning rate, chosen by kind and not tuned, and training is short: the numbers compare methods under equal, small
budgets; they are no best results.
"""

import argparse
import os
import statistics
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
from mmpetl.sweeps.compare import compare, interval  # noqa: E402
from mmpetl.sweeps.plan import make_plan, units, write_text  # noqa: E402
from mmpetl.sweeps.report import Cell, Row, only, read_rows  # noqa: E402
from mmpetl.sweeps.report_plots import plot  # noqa: E402
from mmpetl.sweeps.trial import describe  # noqa: E402
from mmpetl.sweeps.workers import Worker  # noqa: E402
from mmpetl.weights.io import atomic_write, write_json  # noqa: E402

SUITE = ROOT / 'configs' / 'small_suite' / 'suite.json'
BASE = ROOT / 'configs' / 'small_suite' / 'numbers.py'
DATA, PAGE = ROOT / 'benchmarks' / 'numbers.json', ROOT / 'docs' / 'numbers.md'
MARKS = ('<!-- numbers: python benchmarks/benchmark_methods.py --write -->', '<!-- end of numbers -->')
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
    'RepAdapter': Method([dict(type='RepAdapter', mid_dims=8)], 3e-3),
    'LoHa': Method([dict(type='LoHa', rank=4, ops='qv')], 3e-3),
    'LoKr': Method([dict(type='LoKr', rank=8, ops='qv')], 3e-3),
    'OFT': Method([dict(type='OFT', block_size=32, ops='qv')], 1e-3),
    'BOFT': Method([dict(type='BOFT', block_size=8, factors=2, ops='qv')], 1e-3),
    'DiffFit': Method([dict(type='DiffFit')], 3e-3, tune=['*bias', '*ln*']),
    'Mona': Method([dict(type='Mona', mid_dims=64)], 1e-3),
    'ARC': Method([dict(type='ARC', mid_dims=50)], 3e-3),
    'RLRR': Method([dict(type='RLRR')], 3e-3),
    'E2VPT, 5 tokens': Method(e2vpt(5), 3e-3),
    'E2VPT, pruned': Method(e2vpt(10), 3e-3, more=pruned()),
    'E2VPT, pruned as published': Method(e2vpt(10), 3e-3, more=pruned(variant='released')),
}
#: Rows that answer the two questions about published code.
RULES = ['KAdaptation', 'KAdaptation, released']
PRUNED = ['E2VPT, 5 tokens', 'E2VPT, pruned', 'E2VPT, pruned as published']
QUESTIONS = [('KAdaptation', 'KAdaptation, released'), ('E2VPT, pruned', 'E2VPT, pruned as published'),
             ('E2VPT, pruned', 'E2VPT, 5 tokens')]
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


def collect(out: Path) -> Dict[str, Any]:
    """Everything that docs/numbers.md prints, out of the folders of the sweeps."""
    methods = {}
    for row in read_rows([str(out)]):
        cells = {task: dict(params=cell.params, head=cell.head_params, seconds=cell.run_cpu_seconds, scores=cell.by_run)
                 for task, cell in row.cells.items() if cell.scores}
        methods[row.name] = dict(family=row.family, bytes=row.computed_bytes, tasks=cells)
    known = [name for name in METHODS if name in methods and methods[name]['tasks']]
    return dict(seeds=3, methods={name: methods[name] for name in known})


def rows_of(data: Dict[str, Any]) -> Dict[str, Row]:
    """The rows of a report, out of what :func:`collect` returned."""
    rows = {}
    for name, found in data['methods'].items():
        cells = {}
        for task, cell in found['tasks'].items():
            scores = list(cell['scores'].values())
            cells[task] = Cell(scores, scores, data['seeds'], cell['params'], cell['head'], by_run=cell['scores'],
                               run_cpu_seconds=cell['seconds'])
        rows[name] = Row(name, str(SUITE), cells, computed_bytes=found['bytes'], family=found['family'])
    return rows


def tables(data: Dict[str, Any]) -> str:
    """The tables of docs/numbers.md: all methods on the digits, and the comparisons on all data sets."""
    rows = rows_of(data)
    lines = ['| method | kind | parameters without head | memory, MiB | processor time, s | accuracy on digits, % |',
             '|---|---|---:|---:|---:|---:|']
    for name in METHODS:
        cell = rows[name].cells.get('digits') if name in rows else None
        if cell is None or cell.mean is None or cell.params is None or cell.run_cpu_seconds is None:
            few = cell.scores if cell else []
            part = f', {len(few)} of {data["seeds"]} seeds: {statistics.fmean(few):.1f}' if few else ''
            lines.append(f'| {name} | | | | | not measured{part} |')
            continue
        row, half = rows[name], interval(cell.scores)
        lines.append(f'| {name} | {row.family} | {cell.params - (cell.head_params or 0):,} | '
                     f'{(row.computed_bytes or 0) / 2**20:.0f} | {cell.run_cpu_seconds:.0f} | '
                     f'{cell.mean:.1f} ± {half or 0:.1f} |')
    lines += ['', '| difference | data sets | pairs | points | paired t-test, p | Wilcoxon, p |',
              '|---|---|---:|---:|---:|---:|']
    for first, second in QUESTIONS:
        try:
            found = compare(rows[first], rows[second])
        except (KeyError, ValueError):
            lines.append(f'| {first} - {second} | | 0 | not measured | | |')
            continue
        p, w = ('--' if value is None else f'{value:.3f}' for value in (found.t_test, found.wilcoxon))
        bound = '' if found.half is None else f' ± {found.half:.1f}'
        sets = ', '.join(dict.fromkeys(pair.split(', ')[0] for pair in found.pairs))
        lines.append(f'| {first} - {second} | {sets} | {len(found.pairs)} | {found.mean:+.1f}{bound} | {p} | {w} |')
    return '\n'.join(lines)


def updated(page: str, data: Dict[str, Any]) -> str:
    """docs/numbers.md with the tables between its marks."""
    head, tail = page.split(MARKS[0])[0], page.split(MARKS[1])[1]
    return f'{head}{MARKS[0]}\n{tables(data)}\n{MARKS[1]}{tail}'


def write(out: Path) -> None:
    """Put what is measured into benchmarks/numbers.json, docs/numbers.md and docs/images/numbers.png."""
    data = collect(out)
    write_json(DATA, data)
    atomic_write(PAGE, partial(write_text, updated(PAGE.read_text(encoding='utf-8'), data)))
    rows = [only(row, ['digits']) for row in rows_of(data).values() if 'digits' in row.cells]
    atomic_write(PAGE.parent / 'images' / 'numbers.png', partial(plot, rows))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--methods', nargs='+', choices=METHODS, metavar='NAME', help='rows of the table; default all')
    parser.add_argument('--tasks', nargs='+', help='data sets; default all, in the order of STAGES')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='start no run after so many minutes')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'numbers')
    parser.add_argument('--write', action='store_true', help='train nothing: write what is there into docs/numbers.md')
    args = parser.parse_args()
    if args.write:
        write(args.out)
        return
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
