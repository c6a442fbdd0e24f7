"""VQT with one query per block, DINOv2 ViT-S/14 at 56 px, four small real data sets in VTAB-1k's form.

    python tools/fetch_data.py dinov2-vits14 small-suite
    mmpetl sweep configs/small_suite/vqt.py --suite configs/small_suite/suite.json

Trainable: 4,608 parameters in VQT, 4,993 per class in the head (it reads 13 groups of 384). Measured: see docs/image_benchmarks.md.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/dinov2-small.py', '../_base_/datasets/small_suite.py',
    '../_base_/schedules/small_suite_cached.py'
]
model = dict(
    backbone=dict(img_size=56, petl=[dict(type='VQT', num_tokens=1)]), head=dict(num_classes=20, in_channels=13 * 384))
max_epochs = 10
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=0.1 * max_epochs, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=0.1 * max_epochs, end=max_epochs, convert_to_iter_based=True),
]
sweep = dict(grid={'optim_wrapper.optimizer.lr': [1e-3, 3e-3], 'optim_wrapper.optimizer.weight_decay': [1e-2]})
default_hooks = dict(logger=dict(interval=25))
custom_hooks = [dict(type='mmpetl.AdapterHook'), dict(type='mmpetl.GradientAuditHook'), dict(type='mmpetl.FeatureCacheHook')]
