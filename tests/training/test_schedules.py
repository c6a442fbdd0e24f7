# SPDX-License-Identifier: Apache-2.0
"""Learning rates of the recipes, epoch by epoch or step by step, against the papers' closed forms."""

from math import cos, pi
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import PARAM_SCHEDULERS
from mmengine.runner import EpochBasedTrainLoop, Runner

from mmpetl.training import lifecycle
from mmpetl.training.tasks import apply_task

ROOT = Path(__file__).parents[2]


def rates(name, steps_per_epoch=1):
    """Learning rate that each epoch (or each step) is trained with."""
    cfg = Config.fromfile(str(ROOT / f'configs/_base_/schedules/{name}.py'))
    lr = cfg.optim_wrapper.optimizer.lr
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedulers, by_step = [], False
    for entry in cfg.param_scheduler:
        entry = dict(entry)
        cls = PARAM_SCHEDULERS.get(entry.pop('type'))
        if entry.pop('convert_to_iter_based', False):
            by_step = True
            schedulers.append(
                cls.build_iter_from_epoch(optimizer=optimizer, epoch_length=steps_per_epoch, by_epoch=True, **entry))
        else:
            schedulers.append(cls(optimizer=optimizer, by_epoch=True, **entry))
    found = []
    for _ in range(cfg.max_epochs * (steps_per_epoch if by_step else 1)):
        found.append(optimizer.param_groups[0]['lr'] / lr)
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return found


def test_vpt_and_e2vpt():
    want = [e / 10 if e < 10 else 0.5 * (1 + cos(pi * (e - 10) / 90)) for e in range(100)]
    assert rates('vpt_sgd_100e') == pytest.approx(want, abs=2e-8)


def test_convpass_and_fact():
    """Ten epochs of warm-up, then a cosine over all 100 epochs down to a hundredth."""
    got = rates('petl-vit_adamw_100e')
    want = [0.01 + 0.99 * 0.5 * (1 + cos(pi * e / 100)) for e in range(100)]
    assert got[10:] == pytest.approx(want[10:], abs=1e-3) and got[0] == pytest.approx(1e-3)
    assert all(a < b for a, b in zip(got[:10], got[1:11]))


def test_synqt():
    """16 steps per epoch: linear from 0 over ten epochs, half a cosine to a thousandth until epoch 50, both per
    step."""
    got = rates('synqt_adamw_50e', 16)
    want = [s / 160 if s < 160 else 1e-3 + (1 - 1e-3) * 0.5 * (1 + cos(pi * (s - 160) / 640)) for s in range(800)]
    assert got == pytest.approx(want, abs=1e-2)  # the last step of the warm-up differs by one step's worth
    assert got[0] == pytest.approx(0, abs=1e-7)


def test_base_rates_are_scaled_to_the_batch(tmp_path):
    """VPT quotes rates for 256 images; a batch of 128, which it has below 100 prompts, trains with half of it."""
    cfg = apply_task(
        Config.fromfile(str(ROOT / 'configs/e2vpt/vpt-deep_vit-base-p16_in21k-pre_1xb128-coslr-100e_vtab.py')))
    assert cfg.auto_scale_lr.enable and cfg.auto_scale_lr.base_batch_size == 256
    assert cfg.train_dataloader.batch_size == 128
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    from mmengine.optim import OptimWrapper
    wrapper = OptimWrapper(optimizer)
    runner = type('R', (), dict(_train_dataloader=dict(batch_size=128), _randomness_cfg={}, world_size=1,
                                logger=type('L', (), dict(info=print))(), param_schedulers=[], _train_loop=None))()
    Runner.scale_lr(runner, wrapper, dict(cfg.auto_scale_lr))
    assert optimizer.param_groups[0]['lr'] == pytest.approx(cfg.optim_wrapper.optimizer.lr / 2)


def test_a_cosine_follows_the_number_of_epochs():
    """More epochs than the schedule's own by an option: its cosine ends with them, not before."""
    for name in ('quickstart', 'video_demo', 'small_suite', 'small_suite_cached'):
        cosine = Config.fromfile(str(ROOT / f'configs/_base_/schedules/{name}.py')).param_scheduler[1]
        assert cosine.type == 'CosineAnnealingLR' and 'end' not in cosine and 'T_max' not in cosine
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.)
    runner = type('R', (), dict(max_epochs=6, train_dataloader=range(10), logger=MMLogger('schedules'),
                                _train_loop=object.__new__(EpochBasedTrainLoop)))()
    scheduler = Runner._build_param_scheduler(
        runner, dict(type='CosineAnnealingLR', begin=0.3, convert_to_iter_based=True), optimizer)[0]
    found = []
    for _ in range(60):
        found.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    assert 0.3 < found[36] < 0.5 and found[59] < 0.01


def test_a_schedule_that_begins_after_the_run_is_named(monkeypatch):
    """As where a config of one's own gets fewer epochs by an option: the cosine never comes."""
    said = []
    monkeypatch.setattr(lifecycle, 'print_log', lambda text, *_: said.append(text))
    cfg = Config(dict(
        model=dict(), train_dataloader=dict(batch_size=1), train_cfg=dict(by_epoch=True, max_epochs=3),
        param_scheduler=[dict(type='LinearLR', begin=0, end=3), dict(type='CosineAnnealingLR', begin=3, end=20)]))
    lifecycle.prepare(cfg)
    assert [entry.type for entry in cfg.param_scheduler] == ['LinearLR']
    assert said == ['param_scheduler.1 (CosineAnnealingLR) begins at 3 and train_cfg.max_epochs is 3: it is left out, so the '
                    'rate ends where those before leave it. Set begin and end of all to the length of this run']
