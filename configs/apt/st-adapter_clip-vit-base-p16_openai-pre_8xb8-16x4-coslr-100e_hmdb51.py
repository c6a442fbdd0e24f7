"""ST-Adapter before the feed-forward network (arXiv 2206.13559) on CLIP ViT-B/16 over 16 frames, HMDB51, split 1,
schedule of APT.

    mmpetl fetch clip-vit-base-p16 hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    bash tools/dist_train.sh configs/apt/st-adapter_clip-vit-base-p16_openai-pre_8xb8-16x4-coslr-100e_hmdb51.py 8

Trainable: 7,149,363 (7,110,144 + 39,219 in the head). Frames are averaged before the last norm, as published.
Also as published, nobody reads what the last block's adapter does: the class token has attended before it.
The paper trains on Kinetics and Something-Something, with a schedule of its own; no row of this setting is known.
Expected top-1: published unknown, measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/clip-vit-base-p16_frames.py',
    '../_base_/datasets/hmdb51_16x4.py', '../_base_/schedules/apt_adamw_100e_lr2e-3.py'
]
model = dict(
    backbone=dict(frame_pool='before_norm', petl=[dict(type='STAdapter', mid_dims=384, subs='ffn')]),
    cls_head=dict(num_classes=51, label_smooth_eps=0.1))
