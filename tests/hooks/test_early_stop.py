# SPDX-License-Identifier: Apache-2.0
"""Early stopping: said, and the same in a run that was cut."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmpetl.commands.main import main
from mmpetl.hooks.early_stop import SEEN, EarlyStoppingHook
from mmpetl.hooks.loops import EpochTrainLoop

sys.path.insert(0, str(Path(__file__).parents[1]))
import toy_run  # noqa: E402

EXTRA = """
log_level = 'INFO'
train_cfg['max_epochs'] = param_scheduler['T_max'] = 6
custom_hooks = [dict(type='EarlyStoppingHook', monitor='accuracy/top1', patience=2, min_delta=200)]
"""


def test_a_cut_run_stops_where_an_uncut_one_does(tmp_path, monkeypatch, capsys):
    """No validation is better by 200 than the first, so both end after the third epoch; and resuming trains no more."""
    words = ['train', str(toy_run.write(tmp_path, EXTRA)), '--work-dir', str(tmp_path / 'run')]
    epochs, run_epoch, cut = [], EpochTrainLoop.run_epoch, [2]

    def counting(self):
        if self.epoch in cut:
            raise KeyboardInterrupt
        run_epoch(self)
        epochs.append(self.epoch)

    monkeypatch.setattr(EpochTrainLoop, 'run_epoch', counting)
    assert main(words) == 130 and epochs == [1, 2]
    cut.clear()
    said = r'stopped   after epoch 3: best accuracy/top1 [\d.]+, then 2 validation\(s\) without a better one'
    assert main([*words, '--resume']) == 0 and epochs == [1, 2, 3]
    assert len(re.findall(said, capsys.readouterr().out)) == 1
    assert main([*words, '--resume']) == 0 and epochs == [1, 2, 3]
    assert len(re.findall(said, capsys.readouterr().out)) == 1
    assert main([*words, '--resume', '--set', 'custom_hooks.0.patience=3']) == 0 and epochs == [1, 2, 3, 4]
    assert 'stopped   after epoch 4' in capsys.readouterr().out


def stub(**loop):
    return SimpleNamespace(_resume=True, epoch=3, iter=9, logger=SimpleNamespace(info=print, warning=print),
                           train_loop=SimpleNamespace(stop_training=False, **loop))


@pytest.mark.parametrize('best, said', [(91., 'after iteration 9: accuracy/top1 91 reached stopping_threshold=90'), (80., '')])
def test_a_threshold_that_was_reached_ends_a_resumed_run(best, said, capsys):
    hook, runner = EarlyStoppingHook(monitor='accuracy/top1', stopping_threshold=90.), stub()
    hook.after_load_checkpoint(runner, {SEEN: dict(best_score=best, wait_count=0)})
    hook.before_train(runner)
    assert runner.train_loop.stop_training == bool(said) and said in capsys.readouterr().out


def test_a_score_that_is_no_number_is_the_reason(capsys):
    hook, runner = EarlyStoppingHook(monitor='accuracy/top1', patience=2), stub(run_epoch=None)
    runner.train_loop.run_epoch = print
    hook.after_val_epoch(runner, {'accuracy/top1': float('nan')})
    assert runner.train_loop.stop_training and 'after epoch 3: accuracy/top1 is not a finite number' in capsys.readouterr().out
