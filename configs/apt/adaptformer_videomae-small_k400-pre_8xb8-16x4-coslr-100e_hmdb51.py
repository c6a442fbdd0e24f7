"""AdaptFormer on VideoMAE ViT-S, HMDB51, split 1 (APT, arXiv 2403.06978).

    mmpetl fetch videomae-small-k400 hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    bash tools/dist_train.sh configs/apt/adaptformer_videomae-small_k400-pre_8xb8-16x4-coslr-100e_hmdb51.py 8

Trainable: 615,603 (595,200 + 20,403 in norm and head).
Settings for this row are not published; these are those of AdaptFormer, with a rate for AdamW.
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-small_hmdb51.py', '../_base_/schedules/apt_adamw_100e_lr2e-3.py']
model = dict(
    backbone=dict(petl=[dict(type='AdaptFormer', mid_dims=64, scale=0.1)]),
    cls_head=dict(num_classes=51, label_smooth_eps=0.1))
