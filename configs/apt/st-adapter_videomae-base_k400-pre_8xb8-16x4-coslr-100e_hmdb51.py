"""ST-Adapter before attention (arXiv 2206.13559) on VideoMAE ViT-B, HMDB51, split 1, schedule of APT.

    mmpetl fetch videomae-base-k400 hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    bash tools/dist_train.sh configs/apt/st-adapter_videomae-base_k400-pre_8xb8-16x4-coslr-100e_hmdb51.py 8

Trainable: 7,150,899 (7,110,144 + 40,755 in norm and head).
The paper adapts CLIP's image tower, not VideoMAE: no setting and no row of it is published.
Expected top-1: published unknown, measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-base_hmdb51.py', '../_base_/schedules/apt_adamw_100e_lr2e-3.py']
model = dict(
    backbone=dict(petl=[dict(type='STAdapter', mid_dims=384)]),
    cls_head=dict(num_classes=51, label_smooth_eps=0.1))
