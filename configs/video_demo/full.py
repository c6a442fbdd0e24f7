"""Full fine-tuning on the inflated DINOv2 ViT-S/14, Motion6.

    python tools/prepare_motion_clips.py
    python tools/train.py configs/video_demo/full.py

Trainable: 21,753,222 (everything).
Accuracy on the 180 test clips: 70.6 % over 2 clips x 3 crops, 64.2 % with a single view; measured, one seed.
"""

_base_ = '../_base_/recipes/video_demo.py'
model = dict(backbone=dict(tune=['*']))
optim_wrapper = dict(optimizer=dict(lr=3e-6), paramwise_cfg=dict(custom_keys={'cls_head.': dict(lr_mult=1000)}))
