# SPDX-License-Identifier: Apache-2.0
"""What a command shows: few lines, the error last; the log file holds everything, and so does the console with
--verbose."""

import logging
import os
import re
import signal
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from mmengine.logging import MMLogger, print_log

from mmpetl import console
from mmpetl.commands.main import main
from mmpetl.sweeps.run_facts import logs_epochs, read_curves
from mmpetl.training import config as training_config
from mmpetl.training import run
from mmpetl.training.flags import train_parser

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy_run  # noqa: E402

EXTRA = "custom_hooks = [dict(type='mmpetl.AdapterHook', full_checkpoints=True)]\nlog_level = 'INFO'\n" \
    "model['backbone'].update(type='mmpetl.VisionTransformer', petl=[dict(type='LoRA', rank=2)])\n"
DUMPS = ('System environment:', 'Config:\n', 'Hooks will be executed', 'after_train_epoch:', 'Exp name: ',
         'Saving checkpoint at', '- mmengine - ')


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp('console')
    return folder, str(toy_run.write(folder, EXTRA))


def merged(*words, cwd):
    """Status, and output of both streams in their order."""
    done = toy_run.command('bash', '-c', '"$@" 2>&1', 'bash', *words, cwd=cwd)
    return done.returncode, done.stdout


def log_of(folder):
    return ''.join(path.read_text() for path in sorted(folder.glob('*/*.log')))


def test_a_training_and_a_test_in_few_lines(toy):
    folder, config = toy
    status, shown = merged(sys.executable, toy_run.ROOT / 'tools' / 'train.py', config, '--work-dir', 'a', cwd=folder)
    assert not status
    lines = shown.splitlines()
    assert len(lines) <= 10, shown  # 346 in the log file
    assert not [word for word in (*DUMPS, 'Warning') if word in shown]
    assert lines[0] == 'data      24 to train, 24 to validate; 2 classes: dark, light'
    assert re.fullmatch(r'trains    \d+ parameters: lora \d+, head 34 \(base: [\d,]+, frozen\)', lines[1])
    assert re.search(r'\nlog       a/\S+\.log\n', shown)
    assert re.search(r'\ntrain   epoch 2/2  3/3  lr \S+  loss [\d.]+  0:00:00 left\n', shown)
    assert len(re.findall(r'\nval     epoch \d/2  accuracy/top1 [\d.]+\n', shown)) == 2
    assert re.search(r'\nadapter   a/adapter.safetensors \([2-9] kB\)\nnext      python \S+test.py ', shown)
    log = log_of(folder / 'a')
    assert not [word for word in DUMPS if word not in log] and log.count('Epoch(train)') == 6
    assert 'Fail to import ``MultiScaleDeformableAttention``' not in log  # what libraries warn of at their import
    assert not [line for line in lines[:2] if line not in log]
    # the command that it prints, but for the file: the toy's base is random, so the adapter alone would not do
    command = lines[-1].split(maxsplit=1)[1].split()
    assert command[0] == 'python' and command[-1] == 'a/adapter.safetensors'
    status, shown = merged(sys.executable, *command[1:-1], 'a/epoch_2.pth', cwd=folder)
    assert not status and len(shown.splitlines()) <= 4, shown
    assert re.search(r'data      24 to test; 2 classes: dark, light\n', shown)
    assert re.search(r'\ntest    accuracy/top1 [\d.]+\n', shown) and 'Loads checkpoint' not in shown


def test_verbose_shows_what_the_log_holds(toy, capfd):
    folder, config = toy
    assert not main(['train', config, '--work-dir', str(folder / 'b c'), '--verbose', '--set', 'randomness.seed=1'])
    shown = capfd.readouterr().out
    # what was changed on the command line stands in the copy of the config
    assert f"mmpetl test '{folder}/b c/toy.py' '{folder}/b c/adapter.safetensors'" in shown
    assert not [word for word in DUMPS if word not in shown]
    assert len(shown.splitlines()) > 250
    # a test leaves the config of the training as it is
    copy = folder / 'b c' / 'toy.py'
    before = copy.read_bytes()
    assert b'seed=1' in before
    assert not main(['test', str(copy), str(folder / 'b c/epoch_2.pth'), '--set', 'randomness.seed=7'])
    assert copy.read_bytes() == before


CASES = {
    'optim_wrapper.optimizer.lr=9e5': 'the loss became',  # in the run
    'train_dataloader.dataset.classes=["a","b","c"]': 'classes',  # before its first step
    'train_dataloader.dataset.data_root=nowhere': 'does not exist',  # while it is built
    'modle.head=1': 'modle',  # in the command
}


@pytest.mark.parametrize('change', CASES)
def test_an_error_is_one_line_after_a_few(toy, change, capfd):
    folder, config = toy
    assert main(['train', config, '--work-dir', str(folder / 'c'), '--overwrite', '--set', change]) == 1
    shown, error = capfd.readouterr()
    assert error.startswith('error: ') and error.count('\n') == 1 and CASES[change] in error
    assert len(shown.splitlines()) <= 8 and 'Traceback' not in shown
    assert '[traceback with --debug]' in error or 'Traceback' in log_of(folder / 'c')


def test_the_error_is_the_last_line(toy):
    folder, config = toy
    status, shown = merged(sys.executable, toy_run.ROOT / 'tools' / 'train.py', config, '--work-dir', 'd', '--set',
                           list(CASES)[0], cwd=folder)
    lines = shown.splitlines()
    assert status == 1 and lines[0].startswith('data ') and lines[-1].startswith('error: the loss became'), shown
    assert len(lines) <= 8


def test_who_speaks(tmp_path, capfd, monkeypatch):
    """Lines of this package and of the user's files are shown, those of installed packages are not, errors always."""
    with console.quiet():
        logger = MMLogger('speaks', log_file=str(tmp_path / 'log'))
        console.hush(logger)
        for name, file in (('theirs', f'{console._INSTALLED[0]}/theirs.py'), ('mine', str(tmp_path / 'mine.py')),
                           ('mmpetl.features.hook', 'hook.py'), ('mmpetl.hooks.audit', 'audit.py')):
            code = compile("log(f'{__name__} info', logger)\nlog(f'{__name__} warns', logger, 30)\n"
                           "log(f'{__name__} fails', logger, 40)\nwarn(f'{__name__} raises')\n", file, 'exec')
            exec(code, dict(__name__=name, __file__=file, log=print_log, logger=logger,
                            warn=lambda text: warnings.warn(text, stacklevel=2)))
    out, err = capfd.readouterr()
    assert out.splitlines() == [
        'error: theirs fails', 'mine info', 'warning: mine warns', 'error: mine fails',
        'mmpetl.features.hook info', 'warning: mmpetl.features.hook warns', 'error: mmpetl.features.hook fails',
        'warning: mmpetl.hooks.audit warns', 'error: mmpetl.hooks.audit fails']
    assert 'mine raises' in err and 'theirs' not in err
    written = (tmp_path / 'log').read_text()
    assert written.count(' info') == 4 == written.count(' warns') == written.count(' raises')
    logger.warning('now loud')  # a command that is over leaves nothing behind
    assert '- mmengine - ' in capfd.readouterr().out and not console.is_quiet()


def test_lines_of_training_are_rare(monkeypatch):
    now = [0.]
    monkeypatch.setattr(console.time, 'monotonic', lambda: now[0])
    console.set_epochs(50)
    hidden, shown = console.ConsoleFilter(), []
    for epoch in range(1, 51):
        for step in range(10, 101, 10):
            now[0] += 0.5
            text = f'Epoch(train) [{epoch}][{step}/100]  base_lr: 1e-3 lr: 1.2345e-03  eta: 0:00:10  loss: 1.23456'
            record = logging.LogRecord('mmengine', logging.INFO, '', 0, text, None, None)
            if hidden.filter(record):
                shown.append(console.ConsoleFormatter().format(record))
    console.set_epochs(None)
    assert len(shown) == 26 and shown[0] == 'train   epoch 1/50  10/100  lr 1.2e-03  loss 1.235  0:00:10 left'
    assert 'epoch 50/50  100/100' in shown[-1]


@pytest.mark.parametrize('text, wanted', [
    ('Epoch(val) [2][6/6]    accuracy/top1: 60.8333  data_time: 0.0299  time: 1.5473',
     'val     epoch 2  accuracy/top1 60.83'),
    ('Epoch(val)  [2][20/60]    eta: 0:00:20  time: 0.1  data_time: 0.0  memory: 300',
     'val     epoch 2  20/60  0:00:20 left'),
    ('Iter(train) [ 10/100]  base_lr: 1.0e-03 lr: 1.0e-03  eta: 1 day, 0:00:01  time: 0.1  memory: 12  loss: nan',
     'train   10/100  lr 1.0e-03  loss nan  1 day, 0:00:01 left'),
    ('Epoch(test) [15/15]    acc/top1: 0.9500  acc/top5: 1.0000  data_time: 0.1  time: 0.2',
     'test    acc/top1 0.95  acc/top5 1'),
])
def test_short_lines(text, wanted):
    record = logging.LogRecord('mmengine', logging.INFO, '', 0, text, None, None)
    assert console.ConsoleFormatter().format(record) == wanted


@pytest.mark.parametrize('epoch, said', [(0, 'interrupted: before the first checkpoint; the same command begins anew'),
                                         (1, 'interrupted: {}/epoch_1.pth, epoch 1, iteration 3, is kept; the same '
                                          'command with --resume goes on from it')])
def test_ctrl_c_says_what_is_kept(toy, monkeypatch, capsys, epoch, said):
    from mmengine.hooks import IterTimerHook

    def stop(self, runner, *args, **kwargs):
        if runner.epoch == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(IterTimerHook, '_before_iter', stop)
    monkeypatch.chdir(toy[0])
    out = f'stopped{epoch}'
    assert main(['train', toy[1], '--work-dir', out]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == said.format(out)


def test_a_second_ctrl_c_leaves_the_message_whole(toy, monkeypatch, capsys):
    from mmengine.hooks import IterTimerHook

    before, find = signal.getsignal(signal.SIGINT), run.newest_checkpoint

    def press(*_, **__):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0)  # where Python looks at signals

    monkeypatch.setattr(IterTimerHook, '_before_iter', press)
    monkeypatch.setattr(run, 'newest_checkpoint', lambda *a: (press(), find(*a))[1])
    try:
        assert main(['train', toy[1], '--work-dir', str(toy[0] / 'twice')]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err.splitlines()[-1] == (
        'interrupted: before the first checkpoint; the same command begins anew')


def test_a_finished_run_says_so(toy, capsys):
    words = ['train', toy[1], '--work-dir', str(toy[0] / 'finished')]
    assert main(words) == 0 and 'finished  ' not in capsys.readouterr().out
    assert main([*words, '--resume']) == 0
    assert 'finished  at epoch 2 of 2; to train longer add --set train_cfg.max_epochs=N, N above 2' in capsys.readouterr().out
    assert main([*words, '--resume', '--set', 'train_cfg.max_epochs=3', 'param_scheduler.T_max=3']) == 0
    assert 'finished  ' not in capsys.readouterr().out


@pytest.mark.parametrize('known', [True, False])
def test_mixed_precision_on_a_processor_that_has_none_is_said(toy, monkeypatch, known):
    said = []
    monkeypatch.setattr(training_config, 'print_log', lambda text, *_: said.append(text))
    monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: known)
    monkeypatch.setattr('mmengine.device.get_device', lambda: 'cpu')
    cfg = training_config.train_config(train_parser().parse_args([toy[1], '--amp']))
    assert cfg.optim_wrapper.type == 'mmpetl.CpuAmpOptimWrapper'
    assert [text[:38] for text in said] == ([] if known else ['--amp: this processor has no instructio'[:38]])


def test_a_word_at_the_start(monkeypatch, capsys):
    """Once, before torch is imported, to a terminal, by the first process."""
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    with console.quiet():
        console._say_starting()
        assert capsys.readouterr().err == ''  # torch is there
        monkeypatch.delitem(sys.modules, 'torch')
        console._say_starting()
        assert capsys.readouterr().err == 'starting  PyTorch and OpenMMLab are loading\n'
        for change in (lambda: monkeypatch.setenv('LOCAL_RANK', '1'), monkeypatch.undo):
            change()
            console._say_starting()
            assert capsys.readouterr().err == ''


def test_a_run_by_iterations_counts_iterations(toy, capsys):
    folder, config = toy
    loop = "train_cfg=dict(_delete_=True,type='IterBasedTrainLoop',max_iters=6,val_interval=3)"
    schedule = "param_scheduler=dict(_delete_=True,type='CosineAnnealingLR',by_epoch=False,T_max=6)"
    words = ['train', config, '--work-dir', str(folder / 'iterations'), '--set', loop, schedule]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    shown = [line.split() for line in lines if line.startswith(('train ', 'val '))]
    assert shown[0][:2] == ['train', '1/6'] and ['train', '6/6'] in [line[:2] for line in shown]
    assert len([line for line in shown if line[:2] == ['val', 'accuracy/top1']]) == 2 and not [line for line in lines if 'epoch' in line]
    training, testing = read_curves(str(folder / 'iterations'))
    assert [step for step, _ in testing['accuracy/top1']] == [3, 6] and not logs_epochs(str(folder / 'iterations'))


def test_a_base_that_is_missing_is_said_before_anything_is_read_or_removed(toy, capfd, monkeypatch):
    """Opening thousands of videos, or removing the run before, came first."""
    folder, config = toy
    old = folder / 'missing' / 'adapter.safetensors'
    old.parent.mkdir()
    old.write_bytes(b'of the run before')
    monkeypatch.setattr(run, 'build_runner', lambda *_, **__: pytest.fail('data are read'))
    for name, said in (('nowhere.pth', 'no such weight file'), ('dinov2_vits14.safetensors', "'mmpetl fetch dinov2-vits14'")):
        change = f"model.backbone.init_cfg=dict(type='Pretrained', checkpoint='{folder}/{name}')"
        assert main(['train', config, '--work-dir', str(old.parent), '--overwrite', '--set', change]) == 1
        error = capfd.readouterr().err
        assert f'{folder}/{name}' in error and said in error and error.count('\n') == 1
    assert old.read_bytes() == b'of the run before'
