"""ZeroI2V (arXiv 2310.01324) on CLIP ViT-B/16 over 16 frames, HMDB51, split 1, schedule of APT.

    mmpetl fetch clip-vit-base-p16 hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    bash tools/dist_train.sh configs/apt/zero-i2v_clip-vit-base-p16_openai-pre_8xb8-16x4-coslr-100e_hmdb51.py 8

Trainable: 14,254,899 (14,214,144 + 40,755 in the last norm, which the published code trains too, and the head).
The published runs use 8 or 32 frames, 40 epochs and another schedule; no row of this setting is known.
Expected top-1: published unknown, measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/clip-vit-base-p16_frames.py',
    '../_base_/datasets/hmdb51_16x4.py', '../_base_/schedules/apt_adamw_100e_lr2e-3.py'
]
model = dict(
    backbone=dict(petl=[dict(type='ZeroI2V', scale=0.5)], tune=['ln1.*']),
    cls_head=dict(num_classes=51, label_smooth_eps=0.1))
