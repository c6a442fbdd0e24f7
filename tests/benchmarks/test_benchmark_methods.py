# SPDX-License-Identifier: Apache-2.0
"""The benchmark of all methods: its rows are configs that build, and docs/numbers.md says what was measured."""

import dataclasses
import importlib.util
import io
import itertools
import json
import math
import re
import statistics
import sys
from pathlib import Path

import pytest
from PIL import Image
from scipy import stats

import mmpetl  # noqa: F401  (registers the methods)
from mmpetl.registry import METHODS
from mmpetl.sweeps.report import computed_bytes
from mmpetl.sweeps.search import LR
from mmpetl.sweeps.trial import Result, write_result
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
    assert set(METHODS.module_dict) - rows == {'STAdapter', 'AIM', 'ZeroI2V', 'DualPath', 'Side4Video'}  # they work over time
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
        low, middle, high = cfg.sweep.grid['optim_wrapper.optimizer.lr']
        assert cfg.optim_wrapper.optimizer.lr == middle == method.lr / 2 and list(cfg.model.backbone.tune) == list(method.tune)
        assert cfg.train_cfg.max_epochs == (method.cached_epochs or 1) and cfg.train_dataloader.batch_size == 16
        assert (low, high) == pytest.approx((middle / 3, 3 * middle), rel=0.02)
        if method.more:
            scored = cfg.train_cfg.score_dataloader.dataset
            assert scored.ann_file == 'train800.txt' and scored.indices == 200  # not the images that choose the rate
            assert cfg.train_cfg.score_dataloader.dataset.data_root.endswith('pneumonia')
            assert cfg.train_cfg.scorer == dict(variant='released')


@pytest.mark.parametrize('name', [
    name if name in ('PATT', 'VQT') else pytest.param(name, marks=pytest.mark.slow) for name in benchmark.METHODS])
def test_rows_run_and_their_memory_is_what_plan_computes_now(name, tmp_path):
    """A training step of every row goes through, the head included, which VQT needs wider than the others."""
    (tmp_path / 'config.py').write_text(benchmark.config_text(name))
    plan = dict(config=str(tmp_path / 'config.py'), cfg_options={}, suite=str(benchmark.SUITE), tasks=['digits'])
    found = {**DATA['middle'], **DATA['methods']}.get(name)
    assert computed_bytes(plan) == pytest.approx(found['bytes'] if found else computed_bytes(plan), rel=0.01)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """The shared recipe where sweeps write beside it."""
    monkeypatch.setattr(benchmark, 'BASE', tmp_path / 'base.py')
    (tmp_path / 'base.py').write_text((ROOT / 'configs/small_suite/numbers.py').read_text().replace(
        "'../", f"'{ROOT / 'configs'}/"))


@pytest.mark.parametrize('found', [[10., 50., 90.], [90., 90., 10.], [None, 20., 30.]], ids=str)
@pytest.mark.usefixtures('recipe')
def test_every_rate_is_tried_before_the_seeds(found, tmp_path):
    """The rate with the best validation score is that of the three seeds; the lower one on a tie; a run that fails is
    no choice. What has a result is not run again."""
    ran = []

    class Pretended:
        def run(self, plan, trial, folder):
            ran.append((trial.phase, trial.params[LR], trial.seed))
            score = found[benchmark.rates('LoRA').index(trial.params[LR])] if trial.phase == 'search' else 70. + trial.seed
            result = Result('failed', error='diverged') if score is None else Result('ok', score, score, 1, [1], 10, 4)
            write_result(folder, result)
            return result

    for _ in range(2):
        benchmark.run_method('LoRA', ['digits'], tmp_path / 'out', Pretended(), float('inf'))
    low, middle, high = benchmark.rates('LoRA')
    best = {10.: high, 90.: low, None: high}[found[0]]
    assert ran == [*(('search', rate, 0) for rate in (low, middle, high)), *(('final', best, seed) for seed in range(3))]
    cell = benchmark.collect(tmp_path / 'out')['methods']['LoRA']['tasks']['digits']
    assert cell['rate'] == best and list(cell['scores'].values()) == [70., 71., 72.]
    assert cell['validation'] == {f'{rate:g}': score for rate, score in zip((low, middle, high), found, strict=True)}


@pytest.mark.usefixtures('recipe')
def test_runs_at_the_middle_rate_join_what_is_there(tmp_path, monkeypatch):
    """Without a search three seeds run at the middle rate; writing them leaves all other rows as they are."""
    ran = []

    class Pretended:
        def run(self, plan, trial, folder):
            ran.append((trial.phase, trial.seed, load_config(plan['config']).optim_wrapper.optimizer.lr))
            result = Result('ok', 60. + trial.seed, 60. + trial.seed, 1, [1], 10, 4)
            write_result(folder, result)
            return result

    out = tmp_path / 'out'
    benchmark.run_method('Mona', ['digits'], benchmark.middle_of(out), Pretended(), float('inf'), search=False)
    assert ran == [('final', seed, benchmark.rates('Mona')[1]) for seed in range(3)]
    made_by = benchmark.commits(str(next((tmp_path / 'out_middle').glob('*/sweep.json')).parent))
    known = dict(DATA, middle={name: own for name, own in DATA['middle'].items() if name != 'Mona'})
    for name in ('DATA', 'PAGE'):
        path = tmp_path / name
        path.write_text(json.dumps(known) if name == 'DATA' else (ROOT / 'docs/numbers.md').read_text())
        monkeypatch.setattr(benchmark, name, path)
    monkeypatch.setattr(benchmark, 'pictures', lambda data: None)
    benchmark.write(out)
    now = json.loads((tmp_path / 'DATA').read_text())
    mona = now['middle'].pop('Mona')['tasks']['digits']
    assert list(mona['scores'].values()) == [60., 61., 62.] and mona['commit'] == made_by and now == known
    assert '| 61.0 ± 2.5 |' in (tmp_path / 'PAGE').read_text()
    if 'Mona' not in benchmark.whole(DATA):
        assert re.search(r'^\| Mona \| .* \| +\| not searched \| 61.0 ± 2.5 \|$', (tmp_path / 'PAGE').read_text(), re.M)


def test_runs_say_which_commit_made_them(tmp_path):
    """Noted once, beside the runs; a folder that two commits wrote to names both."""
    for _ in range(2):
        benchmark.note_commit(str(tmp_path))
    assert re.fullmatch('[0-9a-f]{9,}(-dirty)?|unknown', benchmark.commits(str(tmp_path)))
    (tmp_path / 'commits.txt').write_text('c50a40890\n7b90b52b0\n')
    assert benchmark.commits(str(tmp_path)) == 'c50a40890, 7b90b52b0'
    assert benchmark.commits(str(tmp_path / 'elsewhere')) == 'unknown'


def test_the_page_says_what_was_measured():
    page = (ROOT / 'docs/numbers.md').read_text()
    assert benchmark.updated(page, DATA) == page  # python benchmarks/benchmark_methods.py --write
    lines = {line.split(' | ')[0].strip('| '): line for line in page.splitlines() if line.startswith('| ')}
    fixed = {name: row['tasks']['digits'] for name, row in DATA['middle'].items()}
    for name in benchmark.METHODS:
        kind, *_, rate, last, middle, _ = (part.strip() for part in lines[name].split('|')[2:])
        assert middle == (shown(fixed[name]['scores']) if name in fixed else '')
        found = DATA['methods'].get(name, {'tasks': {}})['tasks'].get('digits')
        if found is None or len(found['scores']) < 3:
            assert (rate, last) == ('', 'not searched' if name in fixed else 'not measured')
            assert kind == (DATA['middle'][name]['family'] if name in fixed else '')
            continue
        assert last == shown(found['scores'])
        tried = found['validation']
        assert len(tried) == 3 and tried[rate.split()[0]] == max(score for score in tried.values() if score is not None)
        if rate.endswith('(1)') and name in fixed:  # the same runs by another version
            assert found['scores'] == pytest.approx(fixed[name]['scores'], abs=0.21), name


def test_the_page_says_which_commit_measured_a_row():
    page = (ROOT / 'docs/numbers.md').read_text()
    said = {}
    for rate, commit, names in re.findall(r'^\* Measured at the (\w+) rate with commit (.*?): \d+: (.*)\.$', page, re.M):
        said.update({(rate, name): commit for name in names.split('; ')})
    assert said == {(rate, name): row['tasks']['digits']['commit'] for rate, part in (('chosen', 'methods'), ('middle', 'middle'))
                    for name, row in DATA[part].items() if len(row['tasks']['digits']['scores']) >= (3 if part == 'methods' else 1)}
    # Clean checkouts, but for VQT: its head was widened first.
    assert all(re.fullmatch('[0-9a-f]{9}', commit) for (_, name), commit in said.items() if name != 'VQT')


def test_two_histories_train_alike():
    """The page quotes the runs that an older commit made at the middle rate: those of the table are the same."""
    quoted = re.search(r"SynQT's three seeds at the middle rate gave ([\d., and]+) % with 7b90b52b0\s+and again with f4ee26761",
                       (ROOT / 'docs/numbers.md').read_text())[1]
    cell = DATA['middle']['SynQT']['tasks']['digits']
    assert [float(x) for x in re.findall(r'[\d.]+', quoted)] == pytest.approx(list(cell['scores'].values()), abs=0.05)
    assert cell['commit'] == 'f4ee26761'


def test_how_little_chose_a_rate():
    """The sentences beside the questions quote the validation scores of the pruned rows."""
    page = ' '.join((ROOT / 'docs/numbers.md').read_text().split())
    for name, words in (('E2VPT, pruned', 'chosen by {} images of 200 ({} against {} %)'),
                        ('E2VPT, pruned as published', 'that of the row pruned as published by {} ({} against {} %)')):
        best, second, _ = sorted(DATA['methods'][name]['tasks']['digits']['validation'].values(), reverse=True)
        count = round(2 * (best - second))
        assert words.format({3: 'three'}.get(count, count), best, second) in page


def shown(scores):
    """Mean and half of the interval, by scipy."""
    own = list(scores.values())
    if len(own) == 1:
        return f'{own[0]:.1f} (1 seed)'
    low, high = stats.t.interval(0.95, len(own) - 1, statistics.fmean(own), stats.sem(own))
    few = '' if len(own) == 3 else f' ({len(own)} seeds)'
    return f'{statistics.fmean(own):.1f} ± {(high - low) / 2:.1f}{few}'


def complete(part):
    """Scores of the rows that count in a part of the table."""
    cells = {name: row['tasks'].get('digits', {'scores': {}})['scores'] for name, row in DATA[part].items()}
    return {name: list(own.values()) for name, own in cells.items() if len(own) >= (3 if part == 'methods' else 1)}


@pytest.mark.parametrize(('part', 'rate'), [('methods', 'chosen'), ('middle', 'middle')])
def test_the_page_reads_the_table_rightly(part, rate):
    scores = complete(part)
    spans = {name: stats.t.interval(0.95, len(own) - 1, statistics.fmean(own), stats.sem(own)) for name, own in scores.items()
             if len(own) > 1}
    page = (ROOT / 'docs/numbers.md').read_text().split(benchmark.MARKS[0])[1].split(benchmark.MARKS[1])[0]
    line = next(line for line in page.splitlines() if line.startswith('* Of ') and f'rows at the {rate} rate' in line)
    above = {name for name in scores if statistics.fmean(scores[name]) > statistics.fmean(scores['Linear'])}
    clear = {name for name in spans if spans[name][0] > spans['Linear'][1]}
    names, more = re.search(r'are (?:\d+: )?(.*?)\. Their whole interval is above its for (?:\d+: )?(.*?)\. Of all', line).groups()
    assert set(names.split('; ')) == (above or {'none'}) and set(more.split('; ')) == (clear or {'none'})
    pairs = list(itertools.combinations(spans.values(), 2))
    overlap = sum(a[0] <= b[1] and b[0] <= a[1] for a, b in pairs) / len(pairs)
    assert f'* Of {len(scores)} rows' in line and f'{100 * overlap:.0f} % overlap' in line


def test_the_page_counts_rightly():
    page = (ROOT / 'docs/numbers.md').read_text()
    chosen, fixed = complete('methods'), complete('middle')
    for place, word in enumerate(('the lowest rate for', 'middle one for', 'the highest for')):
        count = sum(benchmark.rates(name).index(DATA['methods'][name]['tasks']['digits']['rate']) == place for name in chosen)
        assert f'{word} {count}' in page, word
    assert f'* The rates of {len(chosen)} of {len(benchmark.METHODS)} rows were searched' in page
    alone, absent = re.search(r'at the middle rate alone: (.*?)\. Not measured: (.*?)\.\n', page).groups()
    for said, names in ((alone, set(fixed) - set(chosen)), (absent, set(benchmark.METHODS) - set(chosen) - set(fixed))):
        assert said == 'none' if not names else set(said.split(': ', 1)[1].split('; ')) == names
    few = {name: own[0] / 100 for name, own in {**fixed, **chosen}.items() if len(own) == 1}
    said = re.search(r'One seed, so no interval: \d+: (.*?); with 500 test images .* is ([\d.]+) to ([\d.]+) points', page)
    assert (set(said[1].split('; ')) if said else set()) == set(few)
    if few:
        errors = sorted(100 * math.sqrt(share * (1 - share) / 500) for share in few.values())
        assert said.groups()[1:] == (f'{errors[0]:.1f}', f'{errors[-1]:.1f}')
    for name, own in {**fixed, **chosen}.items():
        assert (f'{name} ({", ".join(f"{x:.1f}" for x in own)})' in page) == (max(own) - min(own) > 20)


@pytest.mark.parametrize(('part', 'rate'), [('methods', 'chosen'), ('middle', 'middle')])
def test_differences_are_those_of_the_scores(part, rate):
    page = (ROOT / 'docs/numbers.md').read_text()
    lines = [line for line in page.splitlines() if line.startswith('| ')]
    for first, second in benchmark.QUESTIONS:
        line = next(line for line in lines if line.startswith(f'| {first} - {second} | {rate} |'))
        a, b = (DATA[part].get(name, {'tasks': {}})['tasks'] for name in (first, second))
        pairs = [(x, b[task]['scores'][run]) for task in a if task in b for run, x in a[task]['scores'].items()
                 if run in b[task]['scores']]
        if not pairs:
            assert 'not measured' in line
            continue
        gaps = [x - y for x, y in pairs]
        assert (f'* {first} against {second}, {rate} rate: ahead in {sum(gap > 0 for gap in gaps)} of {len(gaps)} pairs, by '
                f'{min(gaps):.1f} to {max(gaps):.1f} points.') in page
        assert f'| {len(pairs)} | {statistics.fmean(x - y for x, y in pairs):+.1f}' in line
        assert len(pairs) < 2 or f'| {stats.ttest_rel(*zip(*pairs, strict=True)).pvalue:.3f} |' in line


def test_writing_goes_through_the_report(tmp_path, monkeypatch):
    """What is collected from sweeps' folders comes back as rows with the same numbers."""
    rows = {name: dataclasses.replace(row, folder=name) for name, row in benchmark.rows_of(DATA).items()}
    monkeypatch.setattr(benchmark, 'read_rows', lambda folders: list(rows.values()))
    monkeypatch.setattr(benchmark, 'DATA', tmp_path / 'numbers.json')
    benchmark.DATA.write_text(json.dumps(dict(methods={}, middle=DATA['middle'])))
    chosen = {name: row['tasks'] for name, row in DATA['methods'].items()}
    monkeypatch.setattr(benchmark, 'searched', lambda folder, task: {
        key: chosen[Path(folder).name][task][key] for key in ('rate', 'validation')})
    monkeypatch.setattr(benchmark, 'commits', lambda folder: chosen[Path(folder).name]['digits']['commit'])
    (tmp_path / 'images').mkdir()
    monkeypatch.setattr(benchmark, 'PAGE', tmp_path / 'numbers.md')
    benchmark.PAGE.write_text((ROOT / 'docs/numbers.md').read_text())
    benchmark.write(tmp_path)
    assert json.loads((tmp_path / 'numbers.json').read_text()) == DATA
    for name in ('numbers.png', 'methods.png'):
        assert (tmp_path / 'images' / name).stat().st_size > 20000
    assert benchmark.PAGE.read_text() == (ROOT / 'docs/numbers.md').read_text()


def test_the_picture_of_the_readme_is_of_these_numbers():
    """Every measured method is in it, no text covers another, and the shipped file was drawn from the shipped table."""
    rows, hollow = benchmark.drawn(DATA)
    figure = benchmark.plot_ranked(rows, 'digits', 'title', io.BytesIO(), '', hollow)
    figure.canvas.draw()
    axes, renderer = figure.axes[0], figure.canvas.get_renderer()
    labels = [label for label in axes.get_yticklabels() if label.get_text()]
    scores = {**complete('middle'), **complete('methods')}
    assert sorted(label.get_text() for label in labels) == sorted(scores) and len(scores) >= 18
    diamonds = {name: line for name, line in zip((label.get_text() for label in labels), (
        line for line in axes.lines if line.get_marker() == 'D'), strict=True)}
    assert {name for name, line in diamonds.items() if line.get_markerfacecolor() == 'white'} == set(hollow) == set(
        scores) - set(complete('methods'))
    assert all(line.get_xdata()[0] == pytest.approx(statistics.fmean(scores[name])) for name, line in diamonds.items())
    boxes = [text.get_window_extent(renderer) for text in (*labels, *axes.texts, axes.xaxis.label, figure._suptitle)]
    assert not [(a, b) for a, b in itertools.combinations(boxes, 2) if a.overlaps(b)]
    edge = figure.bbox
    assert all(box.x0 >= -1 and box.x1 <= edge.x1 + 1 and box.y0 >= 0 and box.y1 <= edge.y1 for box in boxes)
    picture = Image.open(ROOT / 'docs/images/methods.png')
    assert picture.info['Description'] == benchmark.digest(DATA), 'benchmarks/benchmark_methods.py --pictures'
    readme = (ROOT / 'README.md').read_text()
    caption = readme.split('(docs/images/methods.png)')[1][:300]
    ranks = sorted(scores, key=lambda name: -statistics.fmean(scores[name]))
    place, what = ranks.index('Linear') + 1, 'best of three rates' + (' (hollow: one rate)' if hollow else '')
    assert f'One epoch, {what}: the linear probe is number {place} of {len(ranks)}' in ' '.join(caption.split())
    page = (ROOT / 'docs/numbers.md').read_text()
    searched = re.findall(r'^\| \w+ \(\w+\) +\| ([\d.]+) ± [\d.]+ \| ([\d.]+) ±', page.split('## Four data sets')[1], re.M)
    assert 'LoRA leads it on three of four data sets' in ' '.join(caption.split()) and [float(b) > float(a) for a, b in searched] == [
        True, True, False, True]
