# SPDX-License-Identifier: Apache-2.0
"""Trials that die in a checkpoint or before their last validation end like those that nothing disturbed."""

import os
import sys
from pathlib import Path

import pytest
import torch

from mmpetl.hooks import checkpoint
from mmpetl.sweeps.trial import Trial, read_result, run_trial

sys.path.insert(0, str(Path(__file__).parents[1]))
import suite_data  # noqa: E402
import toy_chance  # noqa: E402
import toy_sweep  # noqa: E402


@pytest.fixture(scope='module')
def plan(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('trials')
    suite_data.write_vtab(folder / 'data', 'kitti', dict(train800=16, val200=8, test=8))
    config = toy_sweep.write_config(folder / 'toy.py', epochs=3)
    return folder, dict(config=config, suite='vtab', root=str(folder / 'data'), keep_checkpoints=True)


def test_dead_final_runs_are_finished_by_the_next_start(plan):
    folder, settings = plan
    trial = Trial('kitti', 'final', seed=3)
    whole = run_trial(settings, trial, str(folder / 'whole'))
    assert whole.status == 'ok'

    def dying(when):
        real = checkpoint.settle

        def settle(part, path):
            if path.endswith('epoch_3.pth'):
                if when == 'before the rename':
                    os._exit(9)
                real(part, path)
                os._exit(9)  # before the pointer and the last validation
            real(part, path)

        checkpoint.settle = settle
        run_trial(settings, trial, str(folder / when))

    for when in ('before the rename', 'after it'):
        child = toy_chance.in_child(lambda when=when: dying(when))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
        assert read_result(str(folder / when)) is None
        result = run_trial(settings, trial, str(folder / when))
        assert (result.status, result.score, result.epochs) == ('ok', whole.score, whole.epochs), result.error
        assert toy_chance.same(folder / when / 'run/adapter.safetensors', folder / 'whole/run/adapter.safetensors')
        assert not list((folder / when / 'run').glob('.*'))
