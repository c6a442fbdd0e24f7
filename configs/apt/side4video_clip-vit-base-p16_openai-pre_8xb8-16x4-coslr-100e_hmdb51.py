"""Side4Video (arXiv 2311.15769) beside CLIP ViT-B/16 over 16 frames, HMDB51, split 1, schedule of APT.

    mmpetl fetch clip-vit-base-p16 hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    bash tools/dist_train.sh configs/apt/side4video_clip-vit-base-p16_openai-pre_8xb8-16x4-coslr-100e_hmdb51.py 8

Trainable: 21,073,203 (21,056,832 + 16,371 in the head). No gradient enters the base.
The published runs use 8 frames, 30 epochs and another schedule; no row of this setting is known.
Expected top-1: published unknown, measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/clip-vit-base-p16_frames.py',
    '../_base_/datasets/hmdb51_16x4.py', '../_base_/schedules/apt_adamw_100e_lr2e-3.py'
]
model = dict(
    backbone=dict(petl=[dict(type='Side4Video', width=320)]),
    cls_head=dict(in_channels=320, num_classes=51, label_smooth_eps=0.1))
