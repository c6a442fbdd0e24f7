"""LoRA on q, k and v, DINOv2 ViT-S/14 at 56 px, four small real data sets in VTAB-1k's form.

    python tools/fetch_data.py dinov2-vits14 small-suite
    mmpetl sweep configs/small_suite/lora.py --suite configs/small_suite/suite.json

Trainable: 221,184 parameters in LoRA, 385 per class in the head. Measured: see docs/numbers.md.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/dinov2-small.py', '../_base_/datasets/small_suite.py',
    '../_base_/schedules/small_suite.py'
]
model = dict(
    backbone=dict(img_size=56, petl=[dict(type='LoRA', rank=8, alpha=16, ops='qkv')]), head=dict(num_classes=20))
