# SPDX-License-Identifier: Apache-2.0
"""mmpetl search: ranges, refusals; the real thing on Ray Tune is a slow test."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import toy_run
from mmengine.config import Config

from mmpetl.commands.main import main
from mmpetl.sweeps import tune
from mmpetl.sweeps.space import LR, Range, default_space, parse_range, space_of


@pytest.mark.parametrize('text, key, expected', [
    ('lr=loguniform(1e-4, 1e-1)', LR, Range('loguniform', (1e-4, 1e-1))),
    ('wd = uniform(0, 0.1)', 'optim_wrapper.optimizer.weight_decay', Range('uniform', (0, 0.1))),
    ('model.backbone.petl.0.rank=choice([4, 8])', 'model.backbone.petl.0.rank', Range('choice', ([4, 8], ))),
    ("model.backbone.petl=choice([[{'type': 'LoRA', 'rank': 4}], [{'type': 'AdaptFormer'}]])", 'model.backbone.petl',
     Range('choice', ([[{'type': 'LoRA', 'rank': 4}], [{'type': 'AdaptFormer'}]], ))),
    ('x=randint(1, 5)', 'x', Range('randint', (1, 5))),
])
def test_ranges(text, key, expected):
    assert parse_range(text) == (key, expected)


@pytest.mark.parametrize('text, message', [
    ('lr', r'write KEY=KIND\(...\)'), ('lr=3', r'write KEY=KIND\(...\)'), ('lr=choice', r'write KEY=KIND\(...\)'),
    ('lr=log_uniform(1, 2)', "unknown kind 'log_uniform'; did you mean 'loguniform'"),
    ('lr=loguniform(1)', 'loguniform takes low, high, got 1 arguments'),
    ('lr=loguniform(0, 1)', 'must be greater than 0'), ('lr=uniform(2, 1)', 'the smaller one first'),
    ('r=randint(1.5, 2)', 'two numbers'), ('r=choice(4, 8)', 'got 2 arguments'), ('r=choice([])', 'a list of values'),
    ('r=choice([__import__("os")])', r'write KEY=KIND\(...\)'), ('r=os.system("x")', r'write KEY=KIND\(...\)'),
    ('lr=uniform(low=1, high=2)', r'write KEY=KIND\(...\)'),
])
def test_bad_ranges(text, message):
    with pytest.raises(ValueError, match=message):
        parse_range(text)


def test_space_of_a_config():
    cfg = Config(dict(optim_wrapper=dict(optimizer=dict(lr=0.1)), model=dict(backbone=dict(petl=[dict(rank=2)]))))
    low, high = default_space(cfg)[LR].args
    assert high / low == pytest.approx(1e3) and low * high == pytest.approx(0.01)
    assert list(space_of(cfg, ['model.backbone.petl.0.rank=choice([1, 2])'])) == ['model.backbone.petl.0.rank']
    with pytest.raises(ValueError, match="no model.backbne; did you mean 'backbone'"):
        space_of(cfg, ['model.backbne.petl=choice([1])'])
    with pytest.raises(ValueError, match='no model.backbone.petl.1'):
        space_of(cfg, ['model.backbone.petl.1.rank=choice([1])'])
    with pytest.raises(ValueError, match='name what to search with --space'):
        default_space(Config(dict(optim_wrapper=dict())))


def test_a_search_needs_a_validation_part(tmp_path):
    cfg = Config.fromfile(toy_run.write(tmp_path))
    with pytest.raises(ValueError, match='would choose by the test set'):
        tune.check(cfg, on_test=False)
    tune.check(cfg, on_test=True)
    cfg.val_dataloader.dataset.data_root = 'elsewhere'
    tune.check(cfg, on_test=False)
    cfg.val_dataloader = None
    with pytest.raises(ValueError, match='needs a validation part'):
        tune.check(cfg, on_test=False)


def test_ray_is_optional(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'ray', None)
    config = toy_run.write(tmp_path)
    assert main(['search', str(config), '--on-test', '--work-dir', str(tmp_path / 's')]) == 1
    assert "pip install 'ray[tune]'" in capsys.readouterr().err
    assert not (tmp_path / 's').exists()


def test_what_a_run_would_refuse_is_refused_before_one_begins(tmp_path, capsys):
    config = toy_run.write(tmp_path)
    assert main(['search', str(config), '--on-test', '--work-dir', str(tmp_path / 's'), '--set', 'train_cfg.max_epochs=3']) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert 'CosineAnnealingLR) ends at 2 and train_cfg.max_epochs is 3' in error and not (tmp_path / 's').exists()


@pytest.mark.slow
def test_search_on_ray(tmp_path, monkeypatch, capsys):
    """ASHA finds the rate at which the toy learns, goes on in a finished folder at once, and best.py trains."""
    pytest.importorskip('ray', reason='Ray is not installed')
    monkeypatch.chdir(tmp_path)
    toy_run.write(tmp_path)
    words = ['search', 'toy.py', '--on-test', '--samples', '3', '--space', 'lr=choice([1e-9, 0.1])', '--work-dir', 's',
             '--gpus-per-run', '0', '--set', 'train_cfg.max_epochs=3', 'param_scheduler.T_max=3']
    assert main(words) == 0
    found = json.loads((tmp_path / 's/search.json').read_text())['rows']
    assert len(found) == 3 and all(row['score'] is not None and 1 <= row['epochs'] <= 3 for row in found)
    assert [row['score'] for row in found] == sorted((row['score'] for row in found), reverse=True)
    best = Config.fromfile(tmp_path / 's/best.py')
    assert best.optim_wrapper.optimizer.lr == found[0]['params'][LR] and best.train_cfg.max_epochs == 3
    capsys.readouterr()
    assert main(words) == 0 and 'best config: s/best.py' in capsys.readouterr().out
    assert json.loads((tmp_path / 's/search.json').read_text())['rows'] == found
    assert main(['train', 's/best.py', '--set', 'train_cfg.max_epochs=1']) == 0


def finished(folder):
    """Trial -> lines of its results."""
    return {path.parent.name: path.read_text().count('\n') for path in folder.glob('s/ray/*/result.json')}


@pytest.mark.slow
@pytest.mark.parametrize('how', [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_search_goes_on(how, tmp_path):
    """Stopped when the second of three runs has begun to report: the same command keeps what is there, and ends with every
    run and a best config."""
    pytest.importorskip('ray', reason='Ray is not installed')
    toy_run.write(tmp_path)
    words = [sys.executable, '-m', 'mmpetl.commands.main', 'search', 'toy.py', '--on-test', '--samples', '3', '--space',
             'lr=loguniform(1e-3, 0.1)', '--work-dir', 's', '--gpus-per-run', '0', '--cpus-per-run', str(os.cpu_count()),
             '--set', 'train_cfg.max_epochs=3', 'param_scheduler.T_max=3']
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join(sys.path), RAY_raylet_start_wait_time_s='300')
    search = subprocess.Popen(words, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.time() + 900
    while search.poll() is None and len(finished(tmp_path)) < 2 and time.time() < end:
        time.sleep(0.2)
    before = finished(tmp_path)
    search.send_signal(how)
    assert search.wait(300) != 0 and len(before) == 2 and not (tmp_path / 's/best.py').exists()
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = json.loads((tmp_path / 's/search.json').read_text())['rows']
    assert len(rows) == 3 and len({row['params'][LR] for row in rows}) == 3
    assert all(row['score'] is not None and 1 <= row['epochs'] <= 3 for row in rows)
    after = finished(tmp_path)
    assert len(after) == 3 and all(before[name] <= after[name] for name in before), 'a run began anew'
    assert Config.fromfile(tmp_path / 's/best.py').optim_wrapper.optimizer.lr == rows[0]['params'][LR]
