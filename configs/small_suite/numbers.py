"""What all runs of docs/numbers.md share: DINOv2 ViT-S/14 at 42 px, small real data sets in VTAB-1k's form.

    python tools/fetch_data.py dinov2-vits14 small-suite
    python benchmarks/benchmark_methods.py

One epoch of 1,000 images in batches of 16, at 42 px: some twenty seconds a run on one CPU core.
benchmarks/benchmark_methods.py adds the methods and their learning rates; as it stands here this is a linear probe.
Trainable: 385 parameters per class, all in the head. Measured: see docs/numbers.md.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/dinov2-small.py', '../_base_/datasets/small_suite.py',
    '../_base_/schedules/small_suite.py'
]
model = dict(backbone=dict(img_size=42), head=dict(num_classes=20))
max_epochs = 1
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=0.1 * max_epochs, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=0.1 * max_epochs, convert_to_iter_based=True),
]
pipeline = [
    dict(type='mmpetl.LoadImage'),
    dict(type='Resize', scale=(42, 42), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=16, dataset=dict(dataset=dict(pipeline=pipeline)))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = val_dataloader
default_hooks = dict(logger=dict(interval=25))
sweep = dict(_delete_=True, seeds=[0, 1, 2])
