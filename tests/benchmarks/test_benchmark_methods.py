# SPDX-License-Identifier: Apache-2.0
"""The benchmark of all methods: its rows are configs that build, and docs/numbers.md says what was measured."""

import importlib.util
import itertools
import json
import statistics
import sys
from pathlib import Path

import pytest
from scipy import stats

import mmpetl  # noqa: F401  (registers the methods)
from mmpetl.registry import METHODS
from mmpetl.sweeps.report import computed_bytes
from mmpetl.training.config import load_config
from mmpetl.training.tasks import apply_task

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location('benchmark_methods', ROOT / 'benchmarks/benchmark_methods.py')
benchmark = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = benchmark
spec.loader.exec_module(benchmark)
DATA = json.loads((ROOT / 'benchmarks/numbers.json').read_text())


def test_every_method_of_pictures_has_a_row():
    METHODS.import_from_location()
    rows = {petl['type'] for method in benchmark.METHODS.values() for petl in method.petl}
    assert set(METHODS.module_dict) - rows == {'STAdapter', 'AIM'}  # they work over time
    assert {name for _, names in benchmark.STAGES for name in names} == set(benchmark.METHODS)
    assert {name for pair in benchmark.QUESTIONS for name in pair} <= set(benchmark.METHODS)


def test_rows_are_configs(tmp_path):
    for name in ('Linear', 'LoRA', 'E2VPT, pruned as published', 'BitFit'):
        path = tmp_path / f'{name}.py'
        path.write_text(benchmark.config_text(name))
        cfg = load_config(str(path))
        cfg.task.update(suite=str(benchmark.SUITE), name='pneumonia')
        cfg = apply_task(cfg)
        method = benchmark.METHODS[name]
        assert [dict(p) for p in cfg.model.backbone.petl] == list(method.petl) and cfg.model.head.num_classes == 2
        assert cfg.optim_wrapper.optimizer.lr == method.lr / 2 and list(cfg.model.backbone.tune) == list(method.tune)
        assert cfg.train_cfg.max_epochs == (method.cached_epochs or 1) and cfg.train_dataloader.batch_size == 16
        if method.more:
            assert cfg.train_cfg.score_dataloader.dataset.data_root.endswith('pneumonia')
            assert cfg.train_cfg.scorer == dict(variant='released')


def test_memory_is_what_plan_computes_now(tmp_path):
    (tmp_path / 'config.py').write_text(benchmark.config_text('SynQT'))
    plan = dict(config=str(tmp_path / 'config.py'), cfg_options={}, suite=str(benchmark.SUITE), tasks=['digits'])
    assert computed_bytes(plan) == pytest.approx(DATA['methods']['SynQT']['bytes'], rel=0.01)


def test_the_page_says_what_was_measured():
    page = (ROOT / 'docs/numbers.md').read_text()
    assert benchmark.updated(page, DATA) == page  # python benchmarks/benchmark_methods.py --write
    lines = {line.split(' | ')[0].strip('| '): line for line in page.splitlines() if line.startswith('| ')}
    for name in benchmark.METHODS:
        found = DATA['methods'].get(name, {'tasks': {}})['tasks'].get('digits')
        if found is None or len(found['scores']) < 3:
            few = list(found['scores'].values()) if found else []
            part = f', {len(few)} of 3 seeds: {statistics.fmean(few):.1f}' if few else ''
            assert lines[name].endswith(f'| not measured{part} |')
            continue
        scores = list(found['scores'].values())
        low, high = stats.t.interval(0.95, 2, statistics.fmean(scores), stats.sem(scores))
        assert lines[name].endswith(f'| {statistics.fmean(scores):.1f} ± {(high - low) / 2:.1f} |')


def test_the_page_reads_the_table_rightly():
    scores = {name: list(found['tasks']['digits']['scores'].values()) for name, found in DATA['methods'].items()}
    spans = {name: stats.t.interval(0.95, 2, statistics.fmean(own), stats.sem(own)) for name, own in scores.items() if len(own) == 3}
    better = [name for name in spans if statistics.fmean(scores[name]) > statistics.fmean(scores['Linear'])]
    assert better == ['LoRA', 'PATT'] and [name for name in spans if spans[name][0] > spans['Linear'][1]] == ['LoRA']
    pairs = list(itertools.combinations(spans.values(), 2))
    assert round(4 * sum(a[0] <= b[1] and b[0] <= a[1] for a, b in pairs) / len(pairs)) == 3
    ahead = [scores['KAdaptation'][i] - scores['KAdaptation, released'][i] for i in range(3)]
    page = (ROOT / 'docs/numbers.md').read_text()
    assert f'ahead in all three pairs, by {min(ahead):.1f} to {max(ahead):.1f} points' in page
    for name in ('Adapter', 'SSF'):
        assert '({:.1f}, {:.1f} and {:.1f} %'.format(*scores[name]) in page


def test_differences_are_those_of_the_scores():
    lines = [line for line in (ROOT / 'docs/numbers.md').read_text().splitlines() if line.startswith('| ')]
    for first, second in benchmark.QUESTIONS:
        line = next(line for line in lines if line.startswith(f'| {first} - {second} |'))
        a, b = (DATA['methods'].get(name, {'tasks': {}})['tasks'] for name in (first, second))
        pairs = [(x, b[task]['scores'][run]) for task in a if task in b for run, x in a[task]['scores'].items()
                 if run in b[task]['scores']]
        if not pairs:
            assert 'not measured' in line
            continue
        assert f'| {len(pairs)} | {statistics.fmean(x - y for x, y in pairs):+.1f}' in line
        assert len(pairs) < 2 or f'| {stats.ttest_rel(*zip(*pairs, strict=True)).pvalue:.3f} |' in line


def test_writing_goes_through_the_report(tmp_path, monkeypatch):
    """What is collected from sweeps' folders comes back as rows with the same numbers."""
    rows = benchmark.rows_of(DATA)
    monkeypatch.setattr(benchmark, 'read_rows', lambda folders: list(rows.values()))
    monkeypatch.setattr(benchmark, 'DATA', tmp_path / 'numbers.json')
    (tmp_path / 'images').mkdir()
    monkeypatch.setattr(benchmark, 'PAGE', tmp_path / 'numbers.md')
    benchmark.PAGE.write_text((ROOT / 'docs/numbers.md').read_text())
    benchmark.write(tmp_path)
    assert json.loads((tmp_path / 'numbers.json').read_text()) == DATA
    assert (tmp_path / 'images/numbers.png').stat().st_size > 20000
    assert benchmark.PAGE.read_text() == (ROOT / 'docs/numbers.md').read_text()


