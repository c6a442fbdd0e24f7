"""KAdaptation, DINOv2 ViT-S/14 at 56 px, 5 images per class of two small real data sets in ELEVATER's form.

    python tools/fetch_data.py dinov2-vits14 small-suite
    mmpetl sweep configs/small_suite/fewshot_kadaptation.py --suite configs/small_suite/suite_fewshot.json --shots 5

Trainable: 27,136 parameters in KAdaptation, 385 per class in the head. Measured: see docs/numbers.md.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/dinov2-small.py', '../_base_/datasets/small_suite_fewshot.py',
    '../_base_/schedules/elevater_sgd_50e.py'
]
model = dict(
    backbone=dict(img_size=56, petl=[dict(type='KAdaptation')]),
    head=dict(_delete_=True, type='mmpetl.FeatureHead', num_classes=10, in_channels=384, feature_bn=True,
              loss=dict(type='CrossEntropyLoss')))
sweep = dict(lrs=[1e-3, 1e-2, 1e-1], shot_seeds=[0])  # half of the six published rates, one of the three subsets
