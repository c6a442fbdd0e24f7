"""Linear probe, DINOv2 ViT-S/14 at 56 px, four small real data sets in VTAB-1k's form.

    python tools/fetch_data.py dinov2-vits14 small-suite
    mmpetl sweep configs/small_suite/linear.py --suite configs/small_suite/suite.json

Trainable: 385 parameters per class, all in the head. Measured: see docs/numbers.md.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/dinov2-small.py', '../_base_/datasets/small_suite.py',
    '../_base_/schedules/small_suite_cached.py'
]
model = dict(backbone=dict(img_size=56), head=dict(num_classes=20))
default_hooks = dict(logger=dict(interval=25))
custom_hooks = [
    dict(type='mmpetl.AdapterHook'),
    dict(type='mmpetl.GradientAuditHook'),
    dict(type='mmpetl.FeatureCacheHook')
]
