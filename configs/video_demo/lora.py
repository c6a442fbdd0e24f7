"""LoRA on q, k and v on the inflated DINOv2 ViT-S/14, Motion6.

    python tools/prepare_motion_clips.py
    python tools/train.py configs/video_demo/lora.py

Trainable: 224,262 (221,184 + 3,078 in norm and head).
Accuracy on the 180 test clips: 95.0 % over 2 clips x 3 crops, 85.6 % with a single view; measured, one seed.
"""

_base_ = '../_base_/recipes/video_demo.py'
model = dict(backbone=dict(petl=[dict(type='LoRA', rank=8, alpha=16, ops='qkv')]))
optim_wrapper = dict(optimizer=dict(lr=4e-4), paramwise_cfg=dict(custom_keys={'cls_head.': dict(lr_mult=10)}))
