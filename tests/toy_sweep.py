# SPDX-License-Identifier: Apache-2.0
"""A config of toy size whose data are those of a suite, for the tests of sweeps and reports."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TEXT = """
_base_ = ['{root}/configs/_base_/default_runtime.py', '{root}/configs/_base_/datasets/{suite}.py']
small = [dict(type='mmpetl.LoadImage'), dict(type='Resize', scale=(16, 16), backend='pillow'), dict(type='PackInputs')]
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmpetl.VisionTransformer', img_size=16, patch_size=8, petl=[dict(type='LoRA', rank=2)],
        arch=dict(embed_dims=16, num_layers=1, num_heads=2, feedforward_channels=32)),
    head=dict(type='LinearClsHead', num_classes=4, in_channels=16))
train_cfg = dict(by_epoch=True, max_epochs={epochs}, val_interval={epochs})
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(type='OptimWrapper', constructor='mmpetl.TrainableOptimWrapperConstructor',
                     optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.))
param_scheduler = None
train_dataloader = dict(batch_size=8, num_workers=0, dataset={train})
val_dataloader = dict(batch_size=8, num_workers=0, dataset=dict(pipeline=small))
test_dataloader = val_dataloader
sweep = dict({sweep})
"""


def write_config(path, suite='vtab', epochs=1, sweep='grid=dict(lr=[0.1, 0.01]), seeds=[1, 2]'):
    """Write the toy config; returns its path."""
    train = 'dict(pipeline=small)' if suite == 'fgvc' else 'dict(dataset=dict(pipeline=small))'
    Path(path).write_text(TEXT.format(root=ROOT, suite=suite, train=train, epochs=epochs, sweep=sweep))
    return str(path)
