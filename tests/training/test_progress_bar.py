# SPDX-License-Identifier: Apache-2.0
"""What a training run shows: a bar on a terminal, plain lines elsewhere; and where it logs to."""

import functools
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from mmpetl.commands.main import main
from mmpetl.training import progress_bar, run
from mmpetl.training.config import train_config
from mmpetl.training.flags import LOGGERS, train_parser

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy_run  # noqa: E402

EXTRA = "custom_hooks = [dict(type='mmpetl.AdapterHook')]\nlog_level = 'INFO'\n" \
    "model['backbone'].update(type='mmpetl.VisionTransformer', petl=[dict(type='LoRA', rank=2)])\n"


def test_bar_on_a_terminal_and_lines_elsewhere(tmp_path, monkeypatch, capfd):
    config, screen, real = toy_run.write(tmp_path, EXTRA), io.StringIO(), progress_bar.Console
    monkeypatch.setattr(progress_bar, 'Console', lambda file: Console(file=screen, force_terminal=True, width=120))
    bar = progress_bar.Progress  # it is drawn ten times a second, this run is over in less
    monkeypatch.setattr(bar, 'update', functools.partialmethod(bar.update, refresh=True))
    assert not main(['train', str(config), '--work-dir', str(tmp_path / 'a')])
    shown = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', screen.getvalue())
    assert re.search(r'epoch 2/2 .* 6/6 .*it/s .*GiB  loss \d', shown) and 'Epoch(train)' not in shown
    assert 'val     epoch 2/2' in shown + capfd.readouterr().out  # what the bar does not say is said above it
    log = next((tmp_path / 'a').glob('*/*.log')).read_text()
    assert log.count('Epoch(train)') == 6
    monkeypatch.setattr(progress_bar, 'Console', real)
    assert not main(['train', str(config), '--work-dir', str(tmp_path / 'b')])
    out = capfd.readouterr().out
    assert 'it/s' not in out and 'train   epoch 2/2  3/3' in out


@pytest.mark.slow
def test_bar_in_a_real_terminal(tmp_path):
    config = toy_run.write(tmp_path, EXTRA)
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, '-m', 'mmpetl.commands.main', 'train', str(config), '--work-dir', 'out'],
                               cwd=tmp_path, stdout=theirs, stderr=theirs, stdin=theirs,
                               env=dict(os.environ, PYTHONPATH=str(toy_run.ROOT), TERM='xterm', COLUMNS='120'))
    os.close(theirs)
    seen = b''
    while True:
        try:
            seen += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    assert process.wait() == 0
    text = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', seen.decode())
    assert text.startswith('starting  PyTorch and OpenMMLab are loading')
    assert 'epoch 2/2' in text and 'it/s' in text and 'Epoch(train)' not in text
    assert seen.count(b'\x1b[?25l') == seen.count(b'\x1b[?25h') > 0  # the cursor is back


def test_loggers_beside_the_files(tmp_path, monkeypatch):
    pytest.importorskip('tensorboard')
    config = toy_run.write(tmp_path, EXTRA)
    assert not main(['train', str(config), '--work-dir', str(tmp_path / 'out'), '--log-to', 'tensorboard'])
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(next((tmp_path / 'out').glob('*/vis_data/events*'))))
    events.Reload()
    assert len(events.Scalars('loss')) == 6 and len(events.Scalars('accuracy/top1')) == 2
    assert list((tmp_path / 'out').glob('*/vis_data/scalars.json'))
    monkeypatch.setattr('importlib.util.find_spec', lambda name: object())
    cfg = train_config(train_parser().parse_args([str(config), '--log-to', 'wandb', 'mlflow']))
    kinds = [backend['type'] for backend in cfg.visualizer.vis_backends]
    assert kinds == ['LocalVisBackend', 'WandbVisBackend', 'MLflowVisBackend']
    import mmengine.visualization
    for backend in cfg.visualizer.vis_backends:  # MMEngine takes these arguments
        getattr(mmengine.visualization, backend.pop('type'))(save_dir=str(tmp_path), **backend)
    assert set(LOGGERS) == {'tensorboard', 'wandb', 'mlflow'} and run.training_bar


def test_a_logger_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    config = toy_run.write(tmp_path, EXTRA)
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    with pytest.raises(ValueError, match='--log-to wandb needs a package that is not installed: pip install wandb'):
        train_config(train_parser().parse_args([str(config), '--log-to', 'wandb']))
