# SPDX-License-Identifier: Apache-2.0
"""Sweeps end to end at toy size: search, final seeds, interruption, failures, several workers."""

import json
import os
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmpetl.commands.main import main
from mmpetl.commands.sweep import _parse_grid, slurm_script
from mmpetl.commands.train import without
from mmpetl.models import TextFeatures, save_text_features
from mmpetl.sweeps import trial
from mmpetl.sweeps.plan import Unit, make_plan, read_plan, units
from mmpetl.sweeps.submission import shots_of
from mmpetl.sweeps.trial import Result, Trial, read_result, trial_config, write_result

sys.path.insert(0, str(Path(__file__).parents[1]))
import suite_data  # noqa: E402
import toy_sweep  # noqa: E402

LR = 'optim_wrapper.optimizer.lr'


pytestmark = pytest.mark.usefixtures('trials_here')


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp('data')
    suite_data.write_vtab(root, 'kitti', dict(train800=16, val200=8, test=8))
    suite_data.write_elevater(root, 'mnist', dict(train=6, test=1))
    return root


def sweep(config, data, folder, *more, suite='vtab', task='kitti'):
    return main([
        'sweep', config, '--suite', suite, '--tasks', task, '--root',
        str(data), '--work-dir',
        str(folder), *more
    ])


def outcome(folder):
    """Status and score of every trial, by its folder."""
    found = {}
    for path in sorted(Path(folder).glob('**/result.json')):
        result = json.loads(path.read_text())
        found[str(path.parent.relative_to(folder))] = (result['status'], result['score'])
    return found


def test_search_then_final_seeds_and_goes_on_after_being_killed(data, tmp_path, monkeypatch, capsys):
    config = toy_sweep.write_config(tmp_path / 'toy.py')
    assert sweep(config, data, tmp_path / 'whole') == 0
    whole = outcome(tmp_path / 'whole')
    assert sorted(p.split('/')[1] for p in whole) == ['final', 'final', 'search', 'search']
    assert all(status == 'ok' for status, _ in whole.values())

    # The chosen rate is the better one on the validation part, and the final runs use it.
    plan = read_plan(str(tmp_path / 'whole'))
    unit, = units(plan, str(tmp_path / 'whole'))
    scores = {dict(p)[LR]: s for p, s in unit.scores().items()}
    assert dict(unit.best())[LR] == (0.01 if scores[0.01] > scores[0.1] else 0.1)
    assert all(t.params == dict(unit.best()) for t in unit.finals())
    final = unit.folder(unit.finals()[0])
    assert 'adapter.safetensors' in os.listdir(os.path.join(final, 'run'))
    assert not list(Path(tmp_path / 'whole').rglob('*.pth')) and not list(Path(tmp_path / 'whole').rglob('claim'))

    # Killed twice: in the second and in the third run, each time before the result is written.
    real, calls = trial._finish, []

    def dying(*args):
        calls.append(1)
        if len(calls) in (2, 4):
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(trial, '_finish', dying)
    assert sweep(config, data, tmp_path / 'killed') == 130
    assert len(outcome(tmp_path / 'killed')) == 1
    assert 'interrupted: finished runs are kept; the same command goes on' in capsys.readouterr().err
    assert sweep(config, data, tmp_path / 'killed') == 130
    assert len(outcome(tmp_path / 'killed')) == 2
    assert sweep(config, data, tmp_path / 'killed') == 0
    assert outcome(tmp_path / 'killed') == whole
    # Asked once more, nothing runs.
    capsys.readouterr()
    assert sweep(config, data, tmp_path / 'killed') == 0
    assert 'after' not in capsys.readouterr().out and len(calls) == 6


def test_elevater_folds_scores_and_skipped_trials(data, tmp_path, capsys):
    entries = "search='coarse_to_fine', lrs=[0.1], search_epochs=1, shot_seeds=[0, 1]"
    config = toy_sweep.write_config(tmp_path / 'toy.py', suite='elevater', epochs=2, sweep=entries)
    plan = make_plan(config, str(tmp_path / 's'), 'elevater', ['mnist'], str(data), shots=5)
    # All but three decays are settled here without training, so that the test is quick.
    for unit in units(plan, str(tmp_path / 's')):
        while unit.waiting() and unit.waiting()[0].phase == 'search':
            for t in unit.waiting():
                if not unit.settle(t):
                    score = 50 - abs(t.params['optim_wrapper.optimizer.weight_decay'] - 1e-4)
                    write_result(unit.folder(t), Result('ok', score - 1, score, 1))
    assert sweep(config, data, tmp_path / 's', '--shots', '5', suite='elevater', task='mnist') == 0
    found = outcome(tmp_path / 's')
    finals = [p for p in found if '/final/' in p]
    assert sorted(p.split('/')[1] for p in finals) == ['shot_seed=0', 'shot_seed=1']
    assert any(status == 'skipped' for status, _ in found.values())
    scores = tmp_path / 's' / finals[0] / 'scores.npz'
    assert scores.is_file()
    resolved = Config.fromfile(str(next((tmp_path / 's' / finals[1]).rglob('run/config.py'))))
    assert resolved.train_dataloader.dataset.dataset.shots == 5 and resolved.train_dataloader.dataset.dataset.shot_seed == 1
    assert resolved.train_cfg.max_epochs == 2


def test_what_stands_in_a_grid_runs(data, tmp_path):
    """Its rates are for another batch and rise and fall, so none is left out for what it would be if constant."""
    config = toy_sweep.write_config(tmp_path / 'toy.py', epochs=1, sweep='grid=dict(lr=[250.0], wd=[0.01, 0.0]), seeds=[1]')
    unit, = units(make_plan(config, str(tmp_path / 's'), 'vtab', ['kitti'], str(data)), str(tmp_path / 's'))
    assert len(unit.waiting()) == 2 and not any(unit.settle(t) for t in unit.waiting())


def test_a_failed_trial_is_reported_and_never_a_score(data, tmp_path, capsys):
    config = toy_sweep.write_config(tmp_path / 'toy.py', epochs=1, sweep='grid=dict(lr=[1e30, 0.1]), seeds=[1]')
    assert sweep(config, data, tmp_path / 's') == 0
    text = capsys.readouterr().out
    assert 'FAILED' in text and 'lower the learning rate' in text
    bad = [p for p, (status, score) in outcome(tmp_path / 's').items() if status == 'failed']
    assert len(bad) == 1 and outcome(
        tmp_path / 's')[bad[0]][1] is None and (tmp_path / 's' / bad[0] / 'error.txt').is_file()
    final = next(p for p in outcome(tmp_path / 's') if '/final/' in p)
    assert outcome(tmp_path / 's')[final][0] == 'ok'
    # Where every trial fails there is no final run, and the sweep says so.
    config = toy_sweep.write_config(tmp_path / 'toy2.py', epochs=1, sweep='grid=dict(lr=[1e30, 1e31]), seeds=[1]')
    assert sweep(config, data, tmp_path / 's2') == 1
    assert '0 of 1 units are complete, 2 runs failed' in capsys.readouterr().out
    assert sweep(config, data, tmp_path / 's2', '--retry-failed', '--dry-run') == 0
    assert '2 failed runs would be tried again' in capsys.readouterr().out


def test_plan_is_kept_checked_and_extended(data, tmp_path):
    config = toy_sweep.write_config(tmp_path / 'toy.py')
    folder = str(tmp_path / 's')
    plan = make_plan(config, folder, 'vtab', ['kitti'], str(data))
    assert plan['grid'] == {LR: [0.1, 0.01]} and plan['seeds'] == [1, 2] and plan['select'] == 'last'
    assert make_plan(config, folder, 'vtab', ['svhn'], str(data))['tasks'] == ['svhn', 'kitti']
    with pytest.raises(ValueError, match='its seeds differs'):
        make_plan(config, folder, 'vtab', ['kitti'], str(data), seeds=[3])
    with pytest.raises(ValueError, match='its config differs'):
        make_plan(config, folder, 'vtab', ['kitti'], str(data), cfg_options={'model.backbone.petl.0.rank': 3})
    with pytest.raises(ValueError, match="no task 'kiti'; did you mean 'kitti'"):
        make_plan(config, folder, 'vtab', ['kiti'], str(data))
    with pytest.raises(ValueError, match="sweep.seed is no option; did you mean 'seeds'"):
        make_plan(
            toy_sweep.write_config(tmp_path / 'bad.py', sweep='seed=[1]'), str(tmp_path / 'b'), 'vtab', ['kitti'],
            str(data))
    with pytest.raises(FileNotFoundError, match='holds no sweep'):
        read_plan(str(tmp_path))
    write_result(str(tmp_path / 'r'), Result('ok', 1.))
    (tmp_path / 'r/result.json').write_text('{"status": 3, "x": 1}')
    with pytest.raises(ValueError, match='is damaged'):
        read_result(str(tmp_path / 'r'))


def test_a_test_that_no_run_reaches_is_refused(data, tmp_path):
    for value, said in ((4, '4: a run has 3 epochs'), (True, 'True: give a whole number'), (0, '0: give a whole number')):
        config = toy_sweep.write_config(tmp_path / 'toy.py', epochs=3, sweep=f'grid={{}}, test_every={value}')
        with pytest.raises(ValueError, match=f'sweep.test_every={said}'):
            make_plan(config, str(tmp_path / 's'), 'vtab', ['kitti'], str(data))
        assert not (tmp_path / 's').exists()


def test_trial_configs(data, tmp_path):
    config = toy_sweep.write_config(tmp_path / 'toy.py', epochs=30)
    plan = make_plan(config, str(tmp_path / 's'), 'vtab', ['kitti'], str(data), test_every=10)
    search = trial_config(plan, Trial('kitti', 'search', {LR: 0.3}, 7), str(tmp_path / 't'))
    assert search.optim_wrapper.optimizer.lr == 0.3 and search.randomness.seed == 7 and search.resume
    assert search.train_cfg.val_interval == 30 and search.default_hooks.checkpoint.interval == 30
    assert search.val_dataloader.dataset.split == 'val200' and search.work_dir == str(tmp_path / 't/run')
    final = trial_config(plan, Trial('kitti', 'final', {LR: 0.3}, 7), str(tmp_path / 't'))
    assert final.train_cfg.val_interval == 10 and final.default_hooks.checkpoint.interval == 3
    assert final.val_dataloader.dataset.split == 'test'
    plan['search_epochs'] = 3
    assert trial_config(plan, Trial('kitti', 'search'), str(tmp_path / 't')).train_cfg.max_epochs == 3
    names = {Trial('kitti', 'search', {
        LR: lr
    }, 0).folder()
             for lr in (0.1, 0.10000001)} | {Trial('kitti', 'final', {}, 1).folder()}
    assert len(names) == 3 and all(len(n) < 120 for n in names)


def test_slurm_script_and_command_line_helpers(tmp_path, capsys, data):
    argv = [
        'cfg.py', '--suite', 'vtab', '--slurm', 'x.sh', '--slurm-jobs=4', '--slurm-line=--gres=gpu:1', '--seeds', '1',
        '2'
    ]
    kept = without(argv, {'--slurm', '--slurm-jobs', '--slurm-line'})
    assert kept == ['cfg.py', '--suite', 'vtab', '--seeds', '1', '2']
    script = slurm_script(kept, str(tmp_path), 'toy', 4, ['--gres=gpu:1'])
    assert '#SBATCH --array=0-3' in script and '#SBATCH --gres=gpu:1' in script
    assert script.rstrip().endswith('-m mmpetl.commands.main sweep cfg.py --suite vtab --seeds 1 2')
    assert _parse_grid(['lr=0.1,1', 'model.x=a,b']) == {LR: [0.1, 1], 'model.x': ['a', 'b']}
    assert _parse_grid(['model.x=[1,2],[3]', "y='a,b'"]) == {'model.x': [[1, 2], [3]], 'y': ['a,b']}
    with pytest.raises(ValueError, match='write KEY=VALUE,VALUE'):
        _parse_grid(['lr'])
    config = toy_sweep.write_config(tmp_path / 'toy.py')
    assert main([
        'sweep', config, '--suite', 'vtab', '--root',
        str(data), '--work-dir',
        str(tmp_path / 's'), '--tasks', 'kitti', '--slurm',
        str(tmp_path / 'job.sh')
    ]) == 0
    assert 'sbatch' in capsys.readouterr().out and (tmp_path / 'job.sh').is_file()


@pytest.mark.slow
def test_two_sweeps_on_one_folder_share_the_work(tmp_path, data):
    import subprocess
    config = toy_sweep.write_config(tmp_path / 'toy.py')
    command = [
        sys.executable, '-m', 'mmpetl.commands.main', 'sweep', config, '--suite', 'vtab', '--tasks', 'kitti', '--root',
        str(data), '--work-dir',
        str(tmp_path / 's')
    ]
    env = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[2]))
    make_plan(config, str(tmp_path / 's'), 'vtab', ['kitti'], str(data))
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) for _ in range(2)]
    texts = [p.communicate()[0] for p in both]
    assert [p.returncode for p in both] == [0, 0]
    assert sum(t.count(' after ') for t in texts) == 4  # each trial ran once
    assert len(outcome(tmp_path / 's')) == 4


def test_zero_shot_is_one_test_without_training(tmp_path, data):
    weight = torch.nn.functional.normalize(torch.randn(10, 16), dim=1)
    save_text_features(str(tmp_path / 'mnist.npz'), TextFeatures(weight, tuple('0123456789')))
    text = Path(
        toy_sweep.write_config(tmp_path / 'toy.py', suite='elevater',
                               sweep='grid={}, seeds=[0], shot_seeds=[0]')).read_text()
    text = text.replace("head=dict(type='LinearClsHead', num_classes=4, in_channels=16)",
                        f"head=dict(type='mmpetl.ZeroShotHead', text_features='{tmp_path}/{{task}}.npz')")
    for name in ('train_cfg', 'optim_wrapper', 'train_dataloader'):
        start = text.index(f'\n{name} = ')
        text = text[:start] + f'\n{name} = None\n# ' + text[start + 1:].replace('\n                     ', ' ', 1)
    (tmp_path / 'zero.py').write_text(text)
    assert sweep(str(tmp_path / 'zero.py'), data, tmp_path / 's', suite='elevater', task='mnist') == 0
    (status, score), = outcome(tmp_path / 's').values()
    assert status == 'ok' and 0 <= score <= 100
    result = read_result(str(next((tmp_path / 's').rglob('result.json')).parent))
    assert result.epochs == [0] and result.head_params == 0
    assert shots_of(read_plan(str(tmp_path / 's'))) == 0


def test_unit_without_search_has_only_final_runs(tmp_path, data):
    config = toy_sweep.write_config(tmp_path / 'toy.py', sweep='grid={}, seeds=[5]')
    plan = make_plan(config, str(tmp_path / 's'), 'vtab', ['kitti'], str(data))
    unit = Unit(plan, str(tmp_path / 's'), 'kitti', {})
    assert [t.phase for t in unit.waiting()] == ['final'] and unit.waiting()[0].params == {}
