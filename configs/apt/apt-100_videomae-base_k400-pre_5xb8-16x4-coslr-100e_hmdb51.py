"""APT with 100 tokens per block on VideoMAE ViT-B, HMDB51, split 1 (APT, arXiv 2403.06978).

    mmpetl fetch videomae-base-k400 hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    bash tools/dist_train.sh configs/apt/apt-100_videomae-base_k400-pre_5xb8-16x4-coslr-100e_hmdb51.py 5

Trainable: 196,755 (156,000 + 40,755 in norm and head).
Recipe: the published script (5 GPUs; mixed precision by --amp).
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-base_hmdb51.py', '../_base_/schedules/apt_adamw_100e.py']
model = dict(
    backbone=dict(petl=[dict(type='APT', num_tokens=100, drop_rate=0.1, reparam='max')]),
    cls_head=dict(num_classes=51, label_smooth_eps=0.1))
