# SPDX-License-Identifier: Apache-2.0
"""All methods on real weights and real pictures, three seeds each, by the machinery of ``mmpetl sweep``.

    python tools/fetch_data.py dinov2-vits14 small-suite
    python benchmarks/benchmark_methods.py      hours on one CPU core; the same command goes on where it was cut
    python benchmarks/benchmark_methods.py --methods LoRA 'E2VPT, 5 tokens' --tasks digits --minutes 20
    python benchmarks/benchmark_methods.py --middle --tasks digits     three seeds at the middle rate, no search
    python benchmarks/benchmark_methods.py --write          what is measured, into docs/numbers.md
    mmpetl report work_dirs/numbers --tasks digits --out work_dirs/numbers/report

The recipe is configs/small_suite/numbers.py; one worker process runs everything, in the order of ``STAGES``: every
method on the digits, what the two questions about published code need on the X-rays, then the rest. Every method's
learning rate is the best of three on 200 validation images, trained with seed 0 on the other 800 training images; three
seeds at that rate train on all 1,000 and see the test images. Training is short: the numbers compare methods under
equal, small budgets; they are no best results.
"""

import argparse
import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / 'benchmarks'), str(ROOT / 'tools')]
if (ROOT / 'mmpetl').is_dir():
    sys.path.insert(0, str(ROOT))

from number_texts import above_the_probe, differences, errors, listed, shown  # noqa: E402
from pages import between  # noqa: E402
from ranked_plot import plot_ranked  # noqa: E402

from mmpetl.datasets.tables import get_suite  # noqa: E402
from mmpetl.names import plain_name  # noqa: E402
from mmpetl.sweeps.claims import Claim  # noqa: E402
from mmpetl.sweeps.compare import compare  # noqa: E402
from mmpetl.sweeps.plan import make_plan, read_plan, units, write_text  # noqa: E402
from mmpetl.sweeps.report import Cell, Row, only, read_rows  # noqa: E402
from mmpetl.sweeps.report_plots import plot  # noqa: E402
from mmpetl.sweeps.search import LR, as_dict  # noqa: E402
from mmpetl.sweeps.trial import describe  # noqa: E402
from mmpetl.sweeps.workers import Worker  # noqa: E402
from mmpetl.weights.io import atomic_write, write_json  # noqa: E402
from mmpetl.weights.reading import read_json  # noqa: E402

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
        lr: Rate in the middle of the search, for batches of 32, halved for those of 16; the head's is three times that.
        tune: Patterns of base parameters that train.
        cached_epochs: Epochs on cached features; 0: one epoch without a cache.
        more: Further entries of the config.
        width: Of the features, where the method makes others than the base's 384.
    """
    petl: Sequence[Dict[str, Any]]
    lr: float
    tune: Sequence[str] = ()
    cached_epochs: int = 0
    more: Dict[str, Any] = {}
    width: int = 384


def pruned(**scorer: Any) -> Dict[str, Any]:
    """Train with 10 tokens, score them on 200 of the training images, remove 5, rewind, train again."""
    suite = get_suite(str(SUITE))
    loaders = {task: [dict(batch_size=40, num_workers=0, dataset=dict(
        type='mmpetl.ListDataset', data_root=os.path.join(os.path.expanduser(suite.root), task),
        ann_file='train800.txt', indices=200, pipeline=PIPELINE))] for task in suite.tasks}
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
    'VQT': Method([dict(type='VQT', num_tokens=4)], 3e-3, width=384 * (1 + 4 * 12)),
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
    'AdaLoRA': Method([dict(type='AdaLoRA', rank=12, ops='qv')], 3e-3),
    'GPS': Method([dict(type='GPS', num_weights=2)], 3e-3, tune=['*attn*bias', '*ffn*bias']),
    'SPT': Method([dict(type='SPT', budget=40_000, rank=4)], 3e-3, tune=['*attn*bias', '*ffn*bias']),
    'SCT': Method([dict(type='SCT', num_channels=48)], 3e-3),
    'ResTuning': Method([dict(type='ResTuning')], 3e-3),
    'ResTuningBypass': Method([dict(type='ResTuningBypass')], 3e-3),
    'GLoRA': Method([dict(type='GLoRA', rank=4)], 3e-3),
    'E2VPT, 5 tokens': Method(e2vpt(5), 3e-3),
    'E2VPT, pruned': Method(e2vpt(10), 3e-3, more=pruned()),
    'E2VPT, pruned as published': Method(e2vpt(10), 3e-3, more=pruned(variant='released')),
}
#: Rows that answer the two questions about published code.
RULES = ['KAdaptation', 'KAdaptation, released']
PRUNED = ['E2VPT, 5 tokens', 'E2VPT, pruned', 'E2VPT, pruned as published']
QUESTIONS = [('KAdaptation', 'KAdaptation, released'), ('E2VPT, pruned', 'E2VPT, pruned as published'),
             ('E2VPT, pruned', 'E2VPT, 5 tokens')]
#: Parts of benchmarks/numbers.json, the rates they are about, and seeds that a row needs there.
PARTS, ENOUGH = {'methods': 'chosen', 'middle': 'middle'}, {'methods': 3, 'middle': 1}
UNKNOWN = 'unknown'
#: Rows that are measured first.
KNOWN = ['Linear', 'LoRA', 'AdaptFormer', 'VPT', 'PATT', *RULES, 'SSF', 'BitFit', 'Full', 'APT', 'Adapter', 'DoRA',
         'E2VPT', *PRUNED]
#: Rates that are tried, relative to that of the row.
FACTORS = (1 / 3, 1, 3)
#: (tasks, methods) in the order of work: what stands first is there first if the time is short.
STAGES: List[Tuple[List[str], List[str]]] = [
    (['digits'], KNOWN), (['digits'], [name for name in METHODS if name not in KNOWN]), (['pneumonia'], RULES + PRUNED),
    (['pneumonia', 'quickdraw', 'dsprites_loc'], list(METHODS))]


def rates(name: str) -> List[float]:
    """The rates to choose from, for batches of 16: a third of the row's, its own and three times it."""
    return [float(f'{METHODS[name].lr / 2 * factor:.2g}') for factor in FACTORS]


def config_text(name: str, search: bool = True) -> str:
    """The config of a row: the shared recipe, the method and its rate, which is the middle one without a search."""
    method = METHODS[name]
    lines = [f'_base_ = {str(BASE)!r}',
             f'model = dict(backbone=dict(petl={list(method.petl)!r}, tune={list(method.tune)!r}))',
             f'optim_wrapper = dict(optimizer=dict(lr={method.lr / 2:g}))']
    if method.width != 384:
        lines += [f'model["head"] = dict(in_channels={method.width})']
    if search:
        lines += [f'sweep = dict(grid={{{LR!r}: {rates(name)!r}}})']
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


def note_commit(folder: str) -> None:
    """Note beside the runs which commit of this checkout makes them, '-dirty' if its files are others."""
    git = ['git', 'describe', '--always', '--dirty', '--exclude=*', '--abbrev=9']
    try:
        done = subprocess.run(git, cwd=ROOT, capture_output=True, text=True)
    except OSError:  # no git, no name
        return
    if done.returncode == 0 and done.stdout.strip() not in commits(folder):
        with open(Path(folder) / 'commits.txt', 'a', encoding='utf-8') as file:
            file.write(done.stdout)


def commits(folder: str) -> str:
    """The commits that the runs of a sweep were made with."""
    file = Path(folder) / 'commits.txt'
    return ', '.join(file.read_text(encoding='utf-8').split()) if file.is_file() else UNKNOWN


def run_method(name: str, tasks: Sequence[str], out: Path, worker: Worker, until: float, search: bool = True) -> None:
    """What a method lacks on these tasks."""
    stem = plain_name(name.replace(', ', '_').replace(' ', '_').lower(), 'method')
    config = out / 'configs' / f'{name}.py'
    atomic_write(config, partial(write_text, config_text(name, search)))
    folder = str(out / stem)
    plan = make_plan(str(config), folder, str(SUITE), list(tasks))
    for unit in [unit for unit in units(plan, folder) if unit.task in tasks]:
        waiting = unit.waiting()
        while waiting and time.time() < until:  # the seeds follow when the search is over
            for trial in waiting:
                claim = Claim(unit.folder(trial))
                if time.time() < until and claim.acquire():
                    with claim:
                        note_commit(folder)
                        print(f'{name}: {describe(trial, worker.run(plan, trial, unit.folder(trial)))}', flush=True)
            before, waiting = waiting, unit.waiting()
            if waiting == before:  # another process is at them
                break


def searched(folder: str, task: str) -> Dict[str, Any]:
    """The chosen rate, and the validation score of every rate that was tried; None of one that failed."""
    unit = next(unit for unit in units(read_plan(folder), folder) if unit.task == task)
    return dict(rate=as_dict(unit.best() or ())[LR],
                validation={f'{as_dict(params)[LR]:g}': score for params, score in unit.scores().items()})


def swept(out: Path) -> List[Row]:
    """The rows of the sweeps in a folder; none where it does not exist."""
    return read_rows([str(out)]) if out.is_dir() else []


def measured(row: Row, cell: Cell) -> Dict[str, Any]:
    """What is kept of a cell."""
    return dict(params=cell.params, head=cell.head_params, seconds=cell.run_cpu_seconds, scores=cell.by_run,
                commit=commits(row.folder))


def collect(out: Path) -> Dict[str, Any]:
    """Everything that docs/numbers.md prints, out of the folders of the sweeps."""
    methods = {}
    for row in swept(out):
        cells = {task: dict(measured(row, cell), **searched(row.folder, task))
                 for task, cell in row.cells.items() if cell.scores}
        methods[row.name] = dict(family=row.family, bytes=row.computed_bytes, tasks=cells)
    known = [name for name in METHODS if name in methods and methods[name]['tasks']]
    return dict(seeds=3, methods={name: methods[name] for name in known})


def middle_of(out: Path) -> Path:
    """Where the runs without a search are."""
    return out.with_name(f'{out.name}_middle')


def at_middle(out: Path) -> Dict[str, Dict[str, Any]]:
    """What one to three seeds reached on the digits at the middle rate, by row."""
    found = {}
    for row in swept(out):
        cell = row.cells.get('digits')
        if cell is not None and len(cell.by_run) >= ENOUGH['middle']:
            found[row.name] = dict(family=row.family, bytes=row.computed_bytes, tasks=dict(digits=measured(row, cell)))
    return found


def rows_of(data: Dict[str, Any], part: str = 'methods') -> Dict[str, Row]:
    """The rows of a report, out of what :func:`collect` ('methods') or :func:`at_middle` ('middle') returned."""
    rows = {}
    for name, found in data[part].items():
        cells = {}
        for task, cell in found['tasks'].items():
            scores = list(cell['scores'].values())
            wanted = data['seeds'] if part == 'methods' else len(scores)
            cells[task] = Cell(scores, scores, wanted, cell['params'], cell['head'], by_run=cell['scores'],
                               run_cpu_seconds=cell['seconds'])
        rows[name] = Row(name, str(SUITE), cells, computed_bytes=found['bytes'], family=found['family'])
    return rows


def whole(data: Dict[str, Any], part: str = 'methods') -> Dict[str, Dict[str, Any]]:
    """What is known on the digits of every row of which enough seeds are there."""
    cells = {name: row['tasks'].get('digits') for name, row in data[part].items()}
    return {name: cell for name, cell in cells.items() if cell and len(cell['scores']) >= ENOUGH[part]}


def drawn(data: Dict[str, Any]) -> Tuple[List[Row], List[str]]:
    """The rows of the pictures, and which of them are at the middle rate because none was searched."""
    searched_rows, fixed = rows_of(data), rows_of(data, 'middle')
    unsearched = [name for name in METHODS if name in whole(data, 'middle') and name not in whole(data)]
    found = {name: fixed[name] if name in unsearched else searched_rows[name] for name in METHODS
             if name in unsearched or name in whole(data)}
    return [only(row, ['digits']) for row in found.values()], unsearched


def rate_of(data: Dict[str, Any], name: str) -> str:
    """The chosen rate on the digits, and what it is of the middle one."""
    rate = data['methods'][name]['tasks']['digits']['rate']
    return f'{rate:g} ({("1/3", "1", "3")[rates(name).index(rate)]})'


def tables(data: Dict[str, Any]) -> str:
    """The tables of docs/numbers.md: all methods on the digits, and the comparisons on all data sets."""
    chosen, fixed = whole(data), whole(data, 'middle')
    lines = ['| method | kind | parameters without head | memory, MiB | processor time, s | rate | '
             'accuracy on digits, % | at the middle rate |',
             '|---|---|---:|---:|---:|---:|---:|---:|']
    for name in METHODS:
        cell = chosen.get(name) or fixed.get(name)
        if cell is None:
            lines.append(f'| {name} | | | | | | not measured | |')
            continue
        row = data['methods' if name in chosen else 'middle'][name]
        rate, accuracy = (rate_of(data, name), shown(cell)) if name in chosen else ('', 'not searched')
        seconds = '' if cell['seconds'] is None else f'{cell["seconds"]:.0f}'
        lines.append(f'| {name} | {row["family"]} | {cell["params"] - (cell["head"] or 0):,} | '
                     f'{(row["bytes"] or 0) / 2**20:.0f} | {seconds} | {rate} | {accuracy} | '
                     f'{shown(fixed.get(name))} |')
    lines += ['', '| difference | rate | data sets | pairs | points | paired t-test, p | Wilcoxon, p |',
              '|---|---|---|---:|---:|---:|---:|']
    for (first, second), (part, rate) in itertools.product(QUESTIONS, PARTS.items()):
        rows = rows_of(data, part)
        try:
            found = compare(rows[first], rows[second])
        except (KeyError, ValueError):
            lines.append(f'| {first} - {second} | {rate} | | 0 | not measured | | |')
            continue
        p, w = ('--' if value is None else f'{value:.3f}' for value in (found.t_test, found.wilcoxon))
        bound = '' if found.half is None else f' ± {found.half:.1f}'
        sets = ', '.join(dict.fromkeys(pair.split(', ')[0] for pair in found.pairs))
        lines.append(
            f'| {first} - {second} | {rate} | {sets} | {len(found.pairs)} | {found.mean:+.1f}{bound} | {p} | {w} |')
    return '\n'.join(lines)


def counts(data: Dict[str, Any]) -> List[str]:
    """How many rows are measured, and how they stand to the linear probe."""
    chosen, fixed = whole(data), whole(data, 'middle')
    places = [rates(name).index(cell['rate']) for name, cell in chosen.items()]
    absent = [name for name in METHODS if name not in chosen and name not in fixed]
    lines = [f'* The rates of {len(chosen)} of {len(METHODS)} rows were searched. Measured at the middle rate alone: '
             f'{listed(drawn(data)[1])}. Not measured: {listed(absent)}.',
             f'* The search chose the lowest rate for {places.count(0)} rows, the middle one for {places.count(1)}, '
             f'the highest for {places.count(2)}; beyond an end there may be a better one.']
    for cells, rate in ((chosen, 'chosen'), (fixed, 'middle')):
        above, clear, overlap = above_the_probe(cells)
        lines.append(f'* Of {len(cells)} rows at the {rate} rate, above the mean of the linear probe there '
                     f'({shown(cells["Linear"])}) are {listed(above)}. Their whole interval is above its for '
                     f'{listed(clear)}. Of all pairs of intervals {100 * overlap:.0f} % overlap.')
    return lines


def spread(data: Dict[str, Any]) -> List[str]:
    """What the search changed, and where seeds are far apart."""
    chosen, fixed = whole(data), whole(data, 'middle')
    moved = {name: statistics.fmean(cell['scores'].values()) - statistics.fmean(fixed[name]['scores'].values())
             for name, cell in chosen.items() if name in fixed and rates(name).index(cell['rate']) != 1}
    changes = '; '.join(f'{name} {change:+.1f}' for name, change in sorted(moved.items(), key=lambda item: -item[1]))
    runs = {name: list(cell['scores'].values()) for name, cell in {**fixed, **chosen}.items()}
    apart = [f'{name} ({", ".join(f"{x:.1f}" for x in runs[name])})' for name in METHODS
             if name in runs and max(runs[name]) - min(runs[name]) > 20]
    few = [name for name, own in runs.items() if len(own) == 1]
    alone = [f'* One seed, so no interval: {listed(few)}; with 500 test images the standard error of such an accuracy '
             f'is {min(errors(runs, few)):.1f} to {max(errors(runs, few)):.1f} points, that of the seed comes on top.'
             ] if few else []
    return [*alone, f'* What the search changed on the test images, in points: {changes or "nothing"}.',
            f'* Seeds more than 20 points apart (chosen rate, else the middle one): {"; ".join(apart) or "none"}.']


def answers(data: Dict[str, Any]) -> List[str]:
    """The questions, pair by pair."""
    lines = []
    for (first, second), (part, rate) in itertools.product(QUESTIONS, PARTS.items()):
        gaps = differences(data, part, first, second)
        ahead = f'ahead in {sum(gap > 0 for gap in gaps)} of {len(gaps)} pairs' if gaps else 'not measured'
        lines.append(f'* {first} against {second}, {rate} rate: {ahead}'
                     + (f', by {min(gaps):.1f} to {max(gaps):.1f} points.' if gaps else '.'))
    return lines


def measured_with(data: Dict[str, Any]) -> List[str]:
    """Which rows were measured with which commit."""
    lines = []
    for part, rate in PARTS.items():
        cells = whole(data, part)
        for commit in dict.fromkeys(cell['commit'] for cell in cells.values()):
            names = [name for name, cell in cells.items() if cell['commit'] == commit]
            lines.append(f'* Measured at the {rate} rate with commit {commit}: {listed(names)}.')
    return lines


def reading(data: Dict[str, Any]) -> str:
    """What the tables say, in sentences."""
    return '\n'.join([*counts(data), *spread(data), *answers(data), *measured_with(data)])


def updated(page: str, data: Dict[str, Any]) -> str:
    """docs/numbers.md with the tables between its marks."""
    return between(page, *MARKS, f'{tables(data)}\n\n{reading(data)}')


def write(out: Path) -> None:
    """Put what is measured into benchmarks/numbers.json, docs/numbers.md and the pictures of docs/images; rows of which
    nothing is in ``out`` stay as they are."""
    before, found = read_json(DATA), collect(out)
    methods, middle = {**before['methods'], **found['methods']}, {**before['middle'], **at_middle(middle_of(out))}
    data = dict(found, methods={name: methods[name] for name in METHODS if name in methods},
                middle={name: middle[name] for name in METHODS if name in middle})
    write_json(DATA, data)
    atomic_write(PAGE, partial(write_text, updated(PAGE.read_text(encoding='utf-8'), data)))
    pictures(data)


def pictures(data: Dict[str, Any]) -> None:
    """Draw docs/images/numbers.png, of this page, and methods.png, of the README."""
    rows, unsearched = drawn(data)
    folder = PAGE.parent / 'images'
    atomic_write(folder / 'numbers.png', partial(plot, rows, stacked=True))
    title = 'DINOv2 ViT-S/14 (21.5 M) adapted to 1,000 digits in one epoch: 63 steps'
    atomic_write(folder / 'methods.png',
                 lambda file: plot_ranked(rows, 'digits', title, file, digest(data), unsearched))


def digest(data: Dict[str, Any]) -> str:
    """What a picture was drawn from."""
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--methods', nargs='+', choices=METHODS, metavar='NAME', help='rows of the table; default all')
    parser.add_argument('--tasks', nargs='+', help='data sets; default all, in the order of STAGES')
    parser.add_argument('--minutes', type=float, default=float('inf'), help='start no run after so many minutes')
    parser.add_argument('--middle', action='store_true', help='three seeds at the middle rate, without a search')
    parser.add_argument('--out', type=Path, default=ROOT / 'work_dirs' / 'numbers')
    parser.add_argument('--write', action='store_true', help='train nothing: write what is there into docs/numbers.md')
    parser.add_argument('--pictures', action='store_true', help='draw the pictures of docs/images anew')
    args = parser.parse_args()
    if args.pictures:
        pictures(read_json(DATA))
        return
    if args.write:
        write(args.out)
        return
    os.environ.setdefault('OMP_NUM_THREADS', '1')
    until, worker = time.time() + 60 * args.minutes, Worker()
    try:
        for tasks, names in STAGES:
            for name in names:
                if name in (args.methods or names) and set(tasks) & set(args.tasks or tasks):
                    run_method(name, [t for t in tasks if t in (args.tasks or tasks)],
                               middle_of(args.out) if args.middle else args.out, worker, until, not args.middle)
    finally:
        worker.close()
    print(f'mmpetl report {args.out}')


if __name__ == '__main__':
    main()
