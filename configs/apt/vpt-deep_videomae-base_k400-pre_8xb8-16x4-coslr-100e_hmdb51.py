"""VPT-deep on VideoMAE ViT-B, HMDB51, split 1 (APT, arXiv 2403.06978).

    mmpetl fetch videomae-base-k400 hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    bash tools/dist_train.sh configs/apt/vpt-deep_videomae-base_k400-pre_8xb8-16x4-coslr-100e_hmdb51.py 8

Trainable: 86,835 (46,080 + 40,755 in norm and head).
Five prompts before every block, as the paper compares with; its own settings for this row are not published.
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-base_hmdb51.py', '../_base_/schedules/apt_adamw_100e.py']
model = dict(
    backbone=dict(petl=[dict(type='VPT', num_tokens=5, deep=True, drop_rate=0.1)]),
    cls_head=dict(num_classes=51, label_smooth_eps=0.1))
