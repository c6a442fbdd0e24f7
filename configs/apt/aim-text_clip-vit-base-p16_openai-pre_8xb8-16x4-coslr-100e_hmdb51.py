"""AIM (arXiv 2302.03024) on CLIP ViT-B/16 over 16 frames under a head of texts (arXiv 2207.01297), HMDB51, split 1,
schedule of APT.

    mmpetl fetch clip-vit-base-p16 hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    python tools/text_features.py clip-vit-base-p16 --videos hmdb51
    bash tools/dist_train.sh configs/apt/aim-text_clip-vit-base-p16_openai-pre_8xb8-16x4-coslr-100e_hmdb51.py 8

Trainable: 10,665,216 (10,663,680 + 1,536 in the last norm). Projection and text features stay as they are.
No published row joins these two methods.
Expected top-1: published unknown, measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/clip-vit-base-p16_frames_text.py',
    '../_base_/datasets/hmdb51_16x4.py', '../_base_/schedules/apt_adamw_100e_lr2e-3.py'
]
model = dict(
    backbone=dict(
        petl=[dict(type='AIM', scale=0.5, drop_path_rate=[0.2 * i / 11 for i in range(12)])], tune=['ln1.*']),
    cls_head=dict(label_smooth_eps=0.1))
