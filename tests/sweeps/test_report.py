# SPDX-License-Identifier: Apache-2.0
"""Reports and submissions from result files of known content."""

import csv
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmpetl.commands.main import main
from mmpetl.datasets.tables import SUITES
from mmpetl.evaluation import pe_score, ppt_score
from mmpetl.sweeps import report
from mmpetl.sweeps.plan import make_plan, units
from mmpetl.sweeps.report import Cell, cell_text, find_sweeps, read_row, read_rows, table
from mmpetl.sweeps.report_files import csv_text, latex, markdown
from mmpetl.sweeps.report_pages import results_table
from mmpetl.sweeps.report_plots import pareto
from mmpetl.sweeps.submission import submission, validate
from mmpetl.sweeps.trial import Result, write_result

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy_sweep  # noqa: E402


def fake_sweep(folder,
               suite,
               scores,
               seeds=(1, 2),
               params=1000,
               head=100,
               missing=(),
               failed=(),
               name='toy',
               epochs=(1, ),
               peak=None):
    """A sweep whose final runs are written by hand: score of a task plus the seed's place."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = toy_sweep.write_config(folder / f'{name}.py', suite=suite, sweep=f'grid={{}}, seeds={list(seeds)}')
    plan = make_plan(config, str(folder), suite, list(scores))
    for unit in units(plan, str(folder)):
        for place, t in enumerate(unit.finals()):
            if (unit.task, t.seed) in missing:
                continue
            score = scores[unit.task] + place
            result = Result('ok', score, score + 2, epochs[0], list(epochs), params, head, 1., peak)
            write_result(
                unit.folder(t),
                Result('failed', error='it broke') if (unit.task, t.seed) in failed else result)
    return str(folder)


ALL = {name: 50. + i for i, name in enumerate(SUITES['vtab'].tasks)}


def test_complete_table(tmp_path, capsys):
    folder = fake_sweep(tmp_path / 'a', 'vtab', ALL, params=2_000_000, head=500_000)
    assert main(['report', folder, '--out', str(tmp_path / 'out')]) == 0
    text = capsys.readouterr().out
    lines = {
        line.split('|')[1].strip(): line.split('|')[2].strip()
        for line in text.splitlines() if line.startswith('|')
    }
    assert lines['cifar (Natural)'] == '50.50 ± 0.71'
    means = [np.mean([50.5 + i for i in part]) for part in (range(7), range(7, 11), range(11, 19))]
    assert [lines[g] for g in ('Natural', 'Specialized', 'Structured')] == [f'{m:.2f}' for m in means]
    assert lines['mean of 19'] == f'{59.5:.2f}' and lines['mean of 3 groups'] == f'{np.mean(means):.2f}'
    assert lines['trainable, head included (mean)'] == '2,000,000' and lines['head (mean)'] == '500,000'
    assert lines['PE (1e8)'] == f'{pe_score(59.5, 2e6):.2f}' and lines['PPT (1e7)'] == f'{ppt_score(59.5, 1.5e6):.2f}'
    # No GPU, no peak: what `mmpetl plan` computes stands in for it.
    assert float(lines['training memory, GiB (computed)']) == pytest.approx(
        0, abs=0.01) and 'SELECTED ON TEST' not in text
    assert read_row(folder).computed_bytes > 4 * 3000  # the toy's weights alone
    assert sorted(p.name for p in (tmp_path / 'out').iterdir()) == ['vtab.csv', 'vtab.html', 'vtab.md', 'vtab.png',
                                                                   'vtab.tex']
    assert Image.open(tmp_path / 'out/vtab.png').size[0] > 500
    values = [row for row in csv.reader((tmp_path / 'out/vtab.csv').read_text().splitlines()) if row[3] == 'efficiency']
    assert [row[2] for row in values] == ['PE (1e8)', 'PPT (1e7)', 'time of a run, s (mean)', 'training memory, bytes (computed)']
    assert float(values[2][4]) == 1


def test_a_config_that_gives_no_model_any_more_costs_one_line(tmp_path, monkeypatch):
    folder, said = fake_sweep(tmp_path / 'a', 'vtab', ALL), []
    monkeypatch.setattr(report, 'print_log', lambda text, *_: said.append(text))
    config = Path(folder, 'config.py')
    for text in ("model = dict(type='NoSuchModel')", 'model = ('):
        config.write_text(text + '\ntask = dict()\ntrain_dataloader = dict(batch_size=1)\n')
        assert read_row(folder).computed_bytes is None
    config.unlink()
    assert read_row(folder).computed_bytes is None and read_row(folder).cells['cifar'].scores == [50., 51.]
    assert len(said) == 4 and all('training memory is left out' in text and str(config) in text for text in said)
    assert 'FileNotFoundError' in said[-1] and all('\n' not in text for text in said)


def test_missing_runs_are_marked_and_never_averaged_over(tmp_path, capsys):
    folder = fake_sweep(tmp_path / 'a', 'vtab', ALL, missing=[('dmlab', 2)], failed=[('svhn', 1)])
    assert main(['report', folder]) == 1
    text = capsys.readouterr().out
    lines = {
        line.split('|')[1].strip(): line.split('|')[2].strip()
        for line in text.splitlines() if line.startswith('|')
    }
    assert lines['dmlab (Structured)'] == '63.00 [1/2]' and lines['svhn (Natural)'] == '56.00 [1/2]'
    assert lines['Structured'] == '-- [7/8]' and lines['Specialized'] == '59.00' and lines['mean of 19'] == '-- [17/19]'
    assert lines['mean of 3 groups'] == '-- [17/19]' and lines['PE (1e8)'] == '--'
    assert 'Failed:' in text and 'it broke' in text
    rows = list(csv.DictReader(io.StringIO(csv_text(read_rows([folder])))))
    by_task = {r['task']: r for r in rows}
    assert by_task['dmlab']['score'] == '' and by_task['dmlab']['runs'] == '1' and by_task['dmlab']['runs_wanted'] == '2'
    assert by_task['mean of 19']['score'] == '' and float(by_task['Specialized']['score']) == 59.
    assert 'it broke' in by_task['svhn']['errors'] and by_task['svhn']['seconds'] == '1.0' and by_task['kitti'][
        'seconds'] == '2.0'
    assert all(None not in r and None not in r.values() for r in rows)  # as many cells as columns in every line


def test_several_methods_suites_and_the_column_chosen_on_test(tmp_path, capsys):
    fake_sweep(tmp_path / 'all/a', 'vtab', ALL, name='one', params=110)
    fake_sweep(tmp_path / 'all/b', 'vtab', {k: v + 1 for k, v in ALL.items()}, name='two', epochs=(1, 2, 3), peak=2**30)
    fake_sweep(tmp_path / 'all/c', 'fgvc', {name: 80. for name in SUITES['fgvc'].tasks}, name='one')
    assert len(find_sweeps([str(tmp_path / 'all'), str(tmp_path / 'all/a')])) == 3
    assert main(['report', str(tmp_path / 'all'), '--out', str(tmp_path / 'out')]) == 0
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if 'SELECTED ON TEST' in line)
    assert line.split('|')[2].strip() == '--' and float(line.split('|')[3]) == pytest.approx(
        float(next(x for x in text.splitlines() if x.startswith('| mean of 3 groups  ')).split('|')[3]) + 2)
    assert 'mean of 5' in text and (tmp_path / 'out/fgvc.tex').is_file()
    rows = read_rows([str(tmp_path / 'all')])
    assert [r.name for r in rows] == ['one (a)', 'two', 'one (c)']
    with pytest.raises(ValueError, match='one table holds one suite'):
        table(rows)
    with pytest.raises(FileNotFoundError, match='holds no sweep'):
        find_sweeps([str(tmp_path / 'out')])


def test_a_part_of_a_suite_is_named_so(tmp_path):
    row = read_row(fake_sweep(tmp_path / 'a', 'vtab', {'kitti': 70., 'svhn': 50.}))
    text, page = markdown([row]), results_table([row])
    # Of a group without a chosen task nothing is shown; one with some of its tasks says how many are missing.
    groups = {line.split('|')[1].strip() for line in text.splitlines() if line.startswith('|')} & set(row.means())
    assert groups == {'Natural', 'Structured', 'mean of 19', 'mean of 3 groups'} == set(page.head) & set(row.means())
    assert all(len(line) == len(page.head) for line in page.rows) and '-- [1/7]' in text
    assert "mean of these 2 tasks (not VTAB-1k's)" in text and '60.50' in text and 'cifar' not in text and '-- [2/19]' in text
    assert "mean of this task (not VTAB-1k's)" in markdown([read_row(fake_sweep(tmp_path / 'b', 'vtab', {'kitti': 70.}))])


def test_latex(tmp_path):
    rows = [read_row(fake_sweep(tmp_path / 'a', 'vtab', ALL, name='my_method'))]
    text = latex(rows)
    assert r'my\_method' in text and r'50.50 $\pm$ 0.71 \\' in text and r'oxford\_flowers102' in text
    body = [line for line in text.splitlines() if line.endswith(r'\\')]
    assert all(line.count(' & ') == 1 for line in body) and len(body) == 1 + 19 + 5 + 6


def test_cells_and_pareto():
    assert cell_text(None) == cell_text(Cell(wanted=3)) == '--'
    assert cell_text(Cell([50.], [50.], 1)) == '50.00' and cell_text(Cell([50.], [50.], 3)) == '50.00 [1/3]'
    points = [(1, 50), (2, 40), (3, 60), (3, 55), (10, 60), (5, 70)]
    assert pareto(points) == [0, 2, 5] and pareto([]) == []


# -- submission -------------------------------------------------------------------------------------------------------

SIZES = dict(num_params=1000, num_visual_params=900, num_backbone_params=900)


def fake_elevater(folder, tasks):
    """A finished sweep with predictions of the right shape."""
    config = toy_sweep.write_config(folder / 'toy.py', suite='elevater', sweep='grid={}, shot_seeds=[2, 0, 1]')
    plan = make_plan(config, str(folder / 's'), 'elevater', list(tasks), shots=5)
    rng = np.random.default_rng(0)
    for unit in units(plan, str(folder / 's')):
        t, = unit.finals()
        task = SUITES['elevater'].tasks[unit.task]
        scores = rng.random((task.splits['test'].count, task.num_classes))
        if not task.multi_label:
            scores /= scores.sum(1, keepdims=True)
        scores[0, 0] = 0.125 + unit.fold['shot_seed'] / 100 if task.multi_label else scores[0, 0]
        write_result(unit.folder(t), Result('ok', 50., 50., 1, [1], 100 + unit.fold['shot_seed'], 10, 1.))
        np.savez(Path(unit.folder(t), 'scores.npz'), scores=scores.astype(np.float32), labels=np.zeros(len(scores)))
    return str(folder / 's')


def test_submission_zip(tmp_path, capsys):
    folder = fake_elevater(tmp_path, ['hateful-memes', 'voc-2007-classification'])
    assert main(['submit', folder, '--name', 'mine']) == 1
    assert '18 of 20 data sets are missing' in capsys.readouterr().err
    assert main(['submit', folder, '--name', 'mine', '--partial', '--out', str(tmp_path / 'x/sub.zip')]) == 0
    with zipfile.ZipFile(tmp_path / 'x/sub.zip') as archive:
        assert archive.namelist() == ['all_predictions.json']
        data = json.loads(archive.read('all_predictions.json'))['data']
    assert [e['dataset_name'] for e in data] == ['hateful-memes', 'voc-2007-classification']
    entry = data[0]
    assert set(entry) == {
        'model_name', 'dataset_name', 'num_trainable_params', 'num_params', 'num_visual_params', 'num_backbone_params',
        'n_shot', 'rnd_seeds', 'predictions'
    }
    assert entry['rnd_seeds'] == [0, 1, 2] and entry['n_shot'] == 5 and entry['model_name'] == 'mine'
    assert entry['num_trainable_params'] == 101.0
    shape = np.shape(entry['predictions'])
    assert shape == (3, 500, 2) and np.allclose(np.sum(entry['predictions'], -1), 1, rtol=1e-3)
    assert all(len(repr(v)) <= 8 for v in entry['predictions'][0][0])
    # Seeds are in order although the sweep ran them in another one.
    assert [data[1]['predictions'][s][0][0] for s in range(3)] == pytest.approx([0.125, 0.135, 0.145], abs=1e-6)
    base = 4 * 16  # the toy's class token and positions are counted with everything else
    assert entry['num_backbone_params'] > base and entry['num_params'] == entry['num_backbone_params'] + round(
        57.55 * 17)


def test_submission_is_validated(tmp_path):
    folder = fake_elevater(tmp_path, ['hateful-memes'])
    entry, = submission(folder, 'mine', SIZES, complete=False)
    validate([entry], complete=False)
    for change, message in ((dict(predictions=np.asarray(entry['predictions'])[:, :10].tolist()),
                             'the leaderboard wants'),
                            (dict(predictions=(2 * np.asarray(entry['predictions'])).tolist()),
                             'between 0 and 1'), (dict(predictions=(0.5 * np.asarray(entry['predictions'])).tolist()),
                                                  'must sum to 1'), (dict(rnd_seeds=[0, 0, 1]), 'a seed occurs twice')):
        with pytest.raises(ValueError, match=message):
            validate([dict(entry, **change)], complete=False)
    with pytest.raises(ValueError, match="differ in 'n_shot'"):
        validate([entry, dict(entry, n_shot=20)], complete=False)
    with pytest.raises(ValueError, match='only ELEVATER'):
        submission(fake_sweep(tmp_path / 'v', 'vtab', {'kitti': 1.}))
    next(Path(folder).rglob('scores.npz')).unlink()
    with pytest.raises(ValueError, match='scores.npz is missing'):
        submission(folder, 'mine', SIZES, complete=False)
    next(Path(folder).rglob('result.json')).unlink()
    with pytest.raises(ValueError, match='the final run is missing'):
        submission(folder, 'mine', SIZES, complete=False)
