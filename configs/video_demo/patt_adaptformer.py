"""PATT on keys and values with AdaptFormer on the inflated DINOv2 ViT-S/14, Motion6.

    python tools/prepare_motion_clips.py
    python tools/train.py configs/video_demo/patt_adaptformer.py

Trainable: 1,492,998 (1,489,920 + 3,078 in norm and head).
Accuracy on the 180 test clips: 85.6 % over 2 clips x 3 crops, 74.9 % with a single view; measured, one seed.
"""

_base_ = '../_base_/recipes/video_demo.py'
model = dict(
    backbone=dict(petl=[
        dict(type='PATT', ops='kv', mid_dims=64, scale=0.8, init='zero_up'),
        dict(type='AdaptFormer', mid_dims=64, scale=0.1, input='normed', inside_drop_path=True, drop_rate=0.)
    ]))
optim_wrapper = dict(optimizer=dict(lr=8e-5), paramwise_cfg=dict(custom_keys={'cls_head.': dict(lr_mult=50)}))
