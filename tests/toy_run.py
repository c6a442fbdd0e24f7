# SPDX-License-Identifier: Apache-2.0
"""A toy training run: stock mmpretrain types, 24 pictures of two classes, seconds on one core. Loaded by path, tests
are no package."""

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parents[1]

CONFIG = """
default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmpetl'], allow_failed_imports=False)
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='VisionTransformer',
        arch=dict(embed_dims=16, num_layers=2, num_heads=2, feedforward_channels=32),
        img_size=16, patch_size=8, with_cls_token=True),
    head=dict(type='VisionTransformerClsHead', num_classes=2, in_channels=16, loss=dict(type='CrossEntropyLoss'), topk=(1, )))
data_preprocessor = dict(num_classes=2, mean=[127.] * 3, std=[64.] * 3, to_rgb=False)
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
dataset = dict(type='CustomDataset', data_root=r'{data}', data_prefix='', classes=['dark', 'light'], pipeline=pipeline)
train_dataloader = dict(batch_size=8, num_workers=0, dataset=dataset, sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(batch_size=8, num_workers=0, dataset=dataset, sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator
train_cfg = dict(by_epoch=True, max_epochs=2, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.1, momentum=0.9))
param_scheduler = dict(type='CosineAnnealingLR', by_epoch=True, T_max=2)
auto_scale_lr = dict(base_batch_size=16, enable=False)
default_hooks = dict(checkpoint=dict(type='CheckpointHook', interval=1), logger=dict(type='LoggerHook', interval=1))
randomness = dict(seed=0)
log_level = 'WARNING'
"""


def write(folder: Path, extra: str = '') -> Path:
    """Make pictures and a config ``toy.py`` in ``folder``; ``extra`` is appended to the config."""
    random = np.random.RandomState(0)
    for name, level in (('dark', 118), ('light', 136)):
        (folder / 'data' / name).mkdir(parents=True, exist_ok=True)
        for i in range(12):
            picture = np.clip(random.normal(level, 60, (16, 16, 3)), 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / 'data' / name / f'{name}{i}.png'), picture)
    config = folder / 'toy.py'
    config.write_text(CONFIG.format(data=folder / 'data') + extra)
    return config


def command(*words: object, cwd: Path, timeout: int = 120) -> subprocess.CompletedProcess[str]:
    """Run a command in ``cwd`` on the CPU, with one thread and this interpreter."""
    skipped = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT', 'PYTHONPATH')
    environment = {k: v for k, v in os.environ.items() if k not in skipped}
    environment.update(OMP_NUM_THREADS='1', PYTHON=sys.executable, CUDA_VISIBLE_DEVICES='')
    return subprocess.run([str(w) for w in words],
                          cwd=cwd,
                          env=environment,
                          capture_output=True,
                          text=True,
                          timeout=timeout,
                          stdin=subprocess.DEVNULL)
