# SPDX-License-Identifier: Apache-2.0
"""tools/train.py, tools/test.py and their distributed forms, on a toy run of stock mmpretrain types."""

import importlib.util
import json
import logging
import os
import pickle
import shutil
import sys
import types
from pathlib import Path

import mmengine
import pytest
import torch
from mmengine.config import Config

from mmpetl.clean_errors import one_line, run_cleanly
from mmpetl.training import run

TESTS = Path(__file__).resolve().parent
TOOLS = TESTS.parent / 'tools'


def load_toy() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location('toy_run', TESTS / 'toy_run.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


toy = load_toy()


def weights(path):
    return torch.load(path, weights_only=False, map_location='cpu')['state_dict']  # written by this very test


def assert_equal(a, b, **tolerance):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(
            a[key], b[key], msg=lambda m, key=key: f'{key}: {m}', **(tolerance or dict(rtol=0, atol=0)))


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Folder with a toy config and two epochs of training in work_dirs/toy."""
    folder = tmp_path_factory.mktemp('toy')
    config = toy.write(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run.train([str(config)])
    return folder


@pytest.fixture
def here(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


def scalars(work_dir):
    lines = next(Path(work_dir).glob('*/vis_data/scalars.json')).read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_default_work_dir(here):
    assert {'epoch_1.pth', 'epoch_2.pth', 'toy.py'} <= {p.name for p in Path('work_dirs/toy').iterdir()}


def test_two_processes_train_as_one(here):
    """Half the batch in each of two processes, gradients averaged: the weights of one process."""
    done = toy.command(
        'bash',
        TOOLS / 'dist_train.sh',
        'toy.py',
        2,
        '--work-dir',
        'two',
        '--cfg-options',
        'train_dataloader.batch_size=4',
        cwd=here)
    assert done.returncode == 0, done.stderr[-3000:]
    start, one, two = (weights(f'{d}.pth') for d in ('work_dirs/toy/epoch_1', 'work_dirs/toy/epoch_2', 'two/epoch_2'))
    # training moves far more than the difference allowed
    assert max((start[k] - one[k]).abs().max() for k in one) > 1e-3
    assert_equal(one, two, rtol=1e-5, atol=1e-6)


def test_two_processes_test_as_one(here):
    done = toy.command(
        'bash',
        TOOLS / 'dist_test.sh',
        'toy.py',
        'work_dirs/toy/epoch_2.pth',
        2,
        '--work-dir',
        'two-test',
        '--out',
        'two/metrics.json',
        '--out-item',
        'metrics',
        '--dump',
        'two/pred.pkl',
        cwd=here)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(
        Path('two/metrics.json').read_text())['accuracy/top1'] == scalars('work_dirs/toy')[-1]['accuracy/top1']
    assert len(pickle.loads(Path('two/pred.pkl').read_bytes())) == 24
    assert sorted(p.name for p in Path('two').iterdir() if '.part' in p.name) == []


def test_resume_is_exact(here):
    Path('resumed').mkdir()  # as a run that was stopped after its first epoch leaves it
    shutil.copy('work_dirs/toy/epoch_1.pth', 'resumed')
    Path('resumed/last_checkpoint').write_text(str(here / 'resumed' / 'epoch_1.pth'))
    run.train(['toy.py', '--work-dir', 'resumed', '--resume'])
    assert_equal(weights('work_dirs/toy/epoch_2.pth'), weights('resumed/epoch_2.pth'))
    run.train(['toy.py', '--work-dir', 'explicit', '--resume', 'work_dirs/toy/epoch_1.pth'])
    assert_equal(weights('work_dirs/toy/epoch_2.pth'), weights('explicit/epoch_2.pth'))


def test_outputs(here):
    """Metrics and predictions agree with each other and with the validation after training."""
    metrics = run.test(['toy.py', 'work_dirs/toy/epoch_2.pth', '--out', 'out/metrics.json', '--out-item', 'metrics',
                        '--dump', 'out/dump.pkl'])
    assert metrics['accuracy/top1'] == json.loads(Path('out/metrics.json').read_text())['accuracy/top1']
    assert metrics['accuracy/top1'] == scalars('work_dirs/toy')[-1]['accuracy/top1']
    dumped = mmengine.load('out/dump.pkl')
    right = sum(int(sample['pred_label']) == int(sample['gt_label']) for sample in dumped)
    assert metrics['accuracy/top1'] == pytest.approx(100 * right / 24)
    run.test(['toy.py', 'work_dirs/toy/epoch_2.pth', '--out', 'out/pred.pkl'])
    assert [int(s['pred_label']) for s in mmengine.load('out/pred.pkl')] == [int(s['pred_label']) for s in dumped]
    assert sorted(p.name for p in Path('out').iterdir()) == ['dump.pkl', 'metrics.json', 'pred.pkl']


def test_tta_averages_the_two_flips(here):
    run.test(['toy.py', 'work_dirs/toy/epoch_2.pth', '--out', 'plain.pkl'])
    Path('flipped.py').write_text(Path('toy.py').read_text().replace(
        "dict(type='PackInputs')", "dict(type='RandomFlip', prob=1.0), dict(type='PackInputs')"))
    run.test(['flipped.py', 'work_dirs/toy/epoch_2.pth', '--out', 'flipped.pkl'])
    run.test(['toy.py', 'work_dirs/toy/epoch_2.pth', '--out', 'tta.pkl', '--tta'])
    plain, flipped, tta = ([s['pred_score'] for s in mmengine.load(f'{n}.pkl')] for n in ('plain', 'flipped', 'tta'))
    assert any(not torch.equal(p, f) for p, f in zip(plain, flipped))
    for p, f, t in zip(plain, flipped, tta):
        torch.testing.assert_close(t, (p + f) / 2)


def test_show_dir(here):
    run.test(['toy.py', 'work_dirs/toy/epoch_2.pth', '--show-dir', 'pictures', '--interval', '12'])
    assert len(list(Path().rglob('pictures/*.png'))) == 2


def test_script_from_a_shell(here):
    """The real script, from another folder, without PYTHONPATH."""
    done = toy.command(sys.executable, TOOLS / 'train.py', '../toy.py', '--no-validate', '--work-dir', '../shell',
                       '--cfg-options', 'train_cfg.max_epochs=1', 'log_level=INFO', cwd=here / 'data')
    assert done.returncode == 0, done.stderr[-3000:]
    assert Path('shell/epoch_1.pth').exists()
    assert 'Epoch(val)' not in done.stdout


# -- configs and flags ------------------------------------------------------------------------------------------------


def config_of(*arguments):
    return run.train_config(run.train_parser().parse_args(['toy.py', *arguments]))


def test_flags_of_training(here):
    cfg = config_of('--no-validate', '--auto-scale-lr', '--seed', '7', '--deterministic', '--no-pin-memory',
                    '--launcher', 'none', '--local-rank', '0')
    assert cfg.val_cfg is None
    assert cfg.val_evaluator is None
    assert cfg.auto_scale_lr.enable
    assert cfg.randomness == dict(seed=7, deterministic=True)
    assert cfg.train_dataloader.pin_memory is False
    assert cfg.work_dir == 'work_dirs/toy'
    assert config_of().randomness == dict(seed=0)


def test_persistent_workers_only_with_workers(here):
    assert config_of().train_dataloader.persistent_workers is False
    cfg = config_of('--cfg-options', 'train_dataloader.num_workers=2')
    assert cfg.train_dataloader.persistent_workers is True
    assert cfg.val_dataloader.persistent_workers is False
    cfg = config_of('--no-persistent-workers', '--cfg-options', 'train_dataloader.num_workers=2')
    assert cfg.train_dataloader.persistent_workers is False


def test_video_configs_keep_their_collation(here):
    video = str(TOOLS.parent / 'configs/video_demo/lora.py')
    assert 'collate_fn' not in Config.fromfile(video).train_dataloader
    assert 'collate_fn' not in run.train_config(run.train_parser().parse_args([video])).train_dataloader
    assert config_of().train_dataloader.collate_fn == dict(type='default_collate')


def test_metrics_can_be_evaluators_with_metrics(here):
    extra = "test_evaluator = dict(type='Evaluator', metrics=[dict(type='Accuracy')])\n"
    Path('evaluator.py').write_text(Path('toy.py').read_text() + extra)
    args = run.test_parser().parse_args(['evaluator.py', 'work_dirs/toy/epoch_2.pth', '--out', 'x/pred.pkl'])
    assert [m.type for m in run.test_config(args).test_evaluator.metrics] == ['Accuracy', 'DumpResults']


def test_names_of_runs_are_unique(here):
    names = [run.build_runner(config_of('--work-dir', f'named{i}')).experiment_name for i in range(2)]
    assert names[0] != names[1]


def test_checkpointing_changes_nothing(here):
    """Recomputed activations give the same weights; MMEngine's own key is taken as ours."""
    for key in ('petl_checkpointing', 'activation_checkpointing'):
        Path(f'{key}.py').write_text(Path('toy.py').read_text() + f"{key} = ['backbone.layers.*']\n")
        run.train([f'{key}.py'])
        assert_equal(
            weights('work_dirs/toy/epoch_2.pth'), weights(f'work_dirs/{key}/epoch_2.pth'), rtol=1e-6, atol=1e-7)
    log = next(Path('work_dirs/activation_checkpointing').glob('*/*.log')).read_text()
    assert 'taken as petl_checkpointing' in log


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ('c++', 'g++', 'clang++'))), reason='torch.compile needs a C++ compiler')
def test_a_compiled_run_learns_the_same(here):
    extra = "model['backbone'].update(type='mmpetl.VisionTransformer', petl=[dict(type='LoRA', rank=2)])\n"
    for name in ('eager', 'compiled'):
        Path(f'{name}.py').write_text(Path('toy.py').read_text() + extra + f"compile = {name == 'compiled'}\n")
        run.train([f'{name}.py'])
    found, expected = (weights(f'work_dirs/{name}/epoch_2.pth') for name in ('compiled', 'eager'))
    assert any('petl.lora' in key for key in found)
    assert_equal(found, expected, rtol=1e-4, atol=1e-6)


def test_other_runners(here):
    Path('flexible.py').write_text(Path('toy.py').read_text() + """
runner_type = 'FlexibleRunner'
strategy = dict(type='SingleDeviceStrategy')
petl_checkpointing = 'backbone.layers.0'
""")
    run.train(['flexible.py'])
    assert_equal(weights('work_dirs/toy/epoch_2.pth'), weights('work_dirs/flexible/epoch_2.pth'), rtol=1e-6, atol=1e-7)


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('command, expected', [
    ('train toi.py', "config toi.py does not exist; did you mean 'toy.py'"),
    ('train nowhere/toy.py', 'config nowhere/toy.py does not exist; there is no folder nowhere'),
    ('train toy.py --resume work_dirs/toy/epoch_3.pth', 'did you mean epoch_'),
    ('train toy.py --work-dir w --cfg-options model.backbone.type=VisionTransfomer',
     "did you mean 'VisionTransformer'"),
    ('train toy.py --work-dir w --cfg-options train_dataloader.dataset.data_root=/no/data',
     'train_dataloader.dataset.data_root'),
    ('train toy.py --work-dir w --launcher pytorch', 'bash tools/dist_train.sh CONFIG GPUS'),
    ('train toy.py --cfg-options a.0.b=1 model.head.9=2', 'error'),
    ('train scale.py --auto-scale-lr', 'has no auto_scale_lr=dict(base_batch_size=...)'),
    ('train check.py --work-dir w', "no submodule is called 'backbone.blocks.*'"),
    ('test toy.py toy.py', 'not a weight file'),
    ('test toy.py folder.pth', 'a folder, not a weight file'),
    ('test toy.py work_dirs/toy/epoch_9.pth', 'no such weight file'),
    ('test toy.py work_dirs/toy/epoch_2.pth --out x.json', 'for the metrics add --out-item metrics'),
    ('test toy.py work_dirs/toy/epoch_2.pth --out x.txt --out-item metrics', 'metrics are written to .json'),
    ('test toy.py work_dirs/toy/epoch_2.pth --out-item metrics', '--out-item needs --out'),
    ('test notest.py work_dirs/toy/epoch_2.pth', 'it has no test_dataloader and no test_evaluator'),
])
def test_one_line_errors(here, capsys, monkeypatch, command, expected):
    monkeypatch.delenv('RANK', raising=False)
    text = Path('toy.py').read_text()
    Path('scale.py').write_text(text.replace('auto_scale_lr =', 'unused ='))
    Path('check.py').write_text(text + "petl_checkpointing = 'backbone.blocks.*'\n")
    Path('notest.py').write_text(text.replace('test_dataloader =', 'unused =').replace('test_evaluator =', 'unused2 ='))
    Path('folder.pth').mkdir(exist_ok=True)
    name, *arguments = command.split()
    capsys.readouterr()
    assert run_cleanly(getattr(run, name), arguments) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith('error')]
    assert len(lines) == 1
    assert expected in lines[0]
    with pytest.raises(Exception):  # noqa: B017  (of any kind: the next layer up shows its traceback)
        run_cleanly(getattr(run, name), [*arguments, '--debug'])


@pytest.mark.skipif(torch.cuda.is_available(), reason='says what happens without a GPU')
def test_amp_without_gpu(here):
    """bfloat16 on the CPU, whatever the config says of float16's loss scale."""
    cfg = run.train_config(run.train_parser().parse_args(['toy.py', '--amp']))
    assert cfg.optim_wrapper.type == 'mmpetl.CpuAmpOptimWrapper' and 'loss_scale' not in cfg.optim_wrapper
    run.train(['toy.py', '--amp', '--work-dir', 'amp', '--no-validate'])
    plain, mixed = ([r['loss'] for r in scalars(d) if 'loss' in r] for d in ('work_dirs/toy', 'amp'))
    assert len(plain) == len(mixed) and plain != mixed and max(abs(a - b) for a, b in zip(plain, mixed)) < 0.02


def test_amp_refuses_other_wrappers(here, capsys):
    (here / 'other.py').write_text("_base_ = 'toy.py'\noptim_wrapper = dict(type='DeepSpeedOptimWrapper')\n")
    assert run_cleanly(run.train, ['other.py', '--amp']) == 1
    assert "--amp does not work with optim_wrapper.type='DeepSpeedOptimWrapper'" in capsys.readouterr().err


def test_messages_of_workers_are_shortened():
    error = FileNotFoundError(
        'Caught FileNotFoundError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n'
        '  File "x.py", line 1, in f\nFileNotFoundError: data/7.png is not there')
    assert one_line(error) == 'FileNotFoundError: data/7.png is not there'
    error.args = (error.args[0].rpartition('\n')[0] + "\nFileNotFoundError: [Errno 2] No such file or directory: 'data/7.png'", )
    assert one_line(error) == 'No such file or directory: data/7.png: check the name'
    assert one_line(KeyError('no key x')) == 'no key x'
    assert one_line(AssertionError()) == 'AssertionError'


def test_the_line_comes_even_if_its_log_is_full(capsys, monkeypatch):
    """A log that cannot be written, an error without words, nobody who listens: no error of the report itself."""
    from mmpetl import clean_errors

    def full(*_):
        raise OSError(28, 'No space left on device')

    class Mute(ValueError):

        def __str__(self):
            raise RuntimeError

    handler = logging.FileHandler(os.devnull)
    monkeypatch.setattr(clean_errors, '_file_handlers', lambda: [handler])
    handler.stream = types.SimpleNamespace(write=full, flush=full, close=lambda: None)
    for error, said in ((ValueError('what counts'), 'error: what counts'), (Mute(), 'error: Mute')):
        clean_errors.report(error)
        assert capsys.readouterr().err.startswith(said)
    monkeypatch.setattr(sys, 'stderr', types.SimpleNamespace(write=full, flush=full))
    clean_errors.report(ValueError('what counts'))


# -- shell scripts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('words', [
    'dist_train.sh c.py', 'dist_train.sh c.py two', 'dist_train.sh c.py 0', 'dist_test.sh c.py w.pth',
    'slurm_train.sh part job', 'slurm_test.sh part job c.py'
])
def test_usage(tmp_path, words):
    script, *arguments = words.split()
    done = toy.command('bash', TOOLS / script, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_slurm(tmp_path, monkeypatch):
    """The scripts keep both libraries' positional order: a stand-in for srun prints what it is given."""
    (tmp_path / 'srun').write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / 'srun').chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:/usr/bin:/bin')
    monkeypatch.setenv('GPUS', '2')

    def call(script, *words):
        done = toy.command('bash', TOOLS / f'{script}.sh', *words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert lines[:6] == ['-p', 'part', '--job-name=job', '--gres=gpu:2', '--ntasks=2', '--ntasks-per-node=2']
        return lines[lines.index('-u') + 2:]

    assert call('slurm_train', 'part', 'job', 'c.py', 'dir',
                '--amp') == ['c.py', '--work-dir', 'dir', '--amp', '--launcher', 'slurm']
    assert call('slurm_train', 'part', 'job', 'c.py', '--seed', '1') == ['c.py', '--seed', '1', '--launcher', 'slurm']
    assert call('slurm_test', 'part', 'job', 'c.py', 'w.pth',
                '--tta') == ['c.py', 'w.pth', '--tta', '--launcher', 'slurm']
