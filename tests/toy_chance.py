# SPDX-License-Identifier: Apache-2.0
"""A toy run with chance in it: random flips, dropout in the method, a best checkpoint; for tests of dying and resuming.
Loaded by path, tests are no package."""

import os
import sys

import torch
import toy_run
from mmengine.config import Config

from mmpetl.clean_errors import run_cleanly
from mmpetl.training import run
from mmpetl.weights import adapter_file

EXTRA = """
from mmengine.config import ConfigDict
_arch = dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32)
model.update(backbone=dict(
    type='mmpetl.VisionTransformer', img_size=16, patch_size=8, arch=_arch, drop_rate=0.1,
    petl=[dict(type='LoRA', rank=2, drop_rate=0.2), dict(type='AdaptFormer', mid_dims=4)],
    init_cfg=dict(type='Pretrained', checkpoint=r'{base}')))
pipeline.insert(1, dict(type='RandomFlip', prob=0.5))
pipeline.insert(2, dict(type='RandomCrop', crop_size=16, padding=2))
custom_hooks = [dict(type='mmpetl.AdapterHook'), dict(type='mmpetl.GradientAuditHook')]
optim_wrapper.update(constructor='mmpetl.TrainableOptimWrapperConstructor')
default_hooks['checkpoint'] = dict(type='CheckpointHook', interval=1, max_keep_ckpts=1, save_best='auto')
train_cfg.update(max_epochs=3)
param_scheduler = dict(type='CosineAnnealingLR', convert_to_iter_based=True)
"""


def write(folder):
    """Data, base and config ``chance.py`` in ``folder``; returns the config's path."""
    from mmpretrain.models import VisionTransformer
    torch.manual_seed(0)
    trunk = VisionTransformer(
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32), img_size=16, patch_size=8)
    for parameter in trunk.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save(trunk.state_dict(), folder / 'base.pth')
    text = toy_run.write(folder).read_text()
    (folder / 'chance.py').write_text(text + EXTRA.replace('from mmengine.config import ConfigDict\n', '').format(
        base=folder / 'base.pth'))
    return folder / 'chance.py'


def config(path, work_dir, **changes):
    cfg = Config.fromfile(path)
    cfg.work_dir = str(work_dir)
    cfg.merge_from_dict(changes)
    return cfg


def train(path, work_dir, *more):
    """Train by the tool's function; the exit status."""
    return run_cleanly(run.train, [str(path), '--work-dir', str(work_dir), *map(str, more)])


def in_child(action):
    """Start ``action`` in a forked process; its number. It may die as it likes, this process lives on."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        status = action() or 0
    finally:
        os._exit(status)


def same(one, other):
    """Whether two adapter files hold the same bits and scores."""
    (ours, header), (theirs, other_header) = adapter_file.load(one), adapter_file.load(other)
    return (ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
            and header['metrics'] == other_header['metrics'])
