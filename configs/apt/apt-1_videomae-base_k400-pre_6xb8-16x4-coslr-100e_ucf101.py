"""APT with 1 token per block on VideoMAE ViT-B, UCF101, split 1 (APT, arXiv 2403.06978).

    mmpetl fetch videomae-base-k400 ucf101
    python tools/prepare_ucf101.py data/ucf101
    bash tools/dist_train.sh configs/apt/apt-1_videomae-base_k400-pre_6xb8-16x4-coslr-100e_ucf101.py 6

Trainable: 80,765 (1,560 + 79,205 in norm and head).
Recipe: the published script (6 GPUs; mixed precision by --amp).
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-base_ucf101.py', '../_base_/schedules/apt_adamw_100e.py']
model = dict(
    backbone=dict(petl=[dict(type='APT', num_tokens=1, drop_rate=0.1, reparam='max')]),
    cls_head=dict(num_classes=101, label_smooth_eps=0.1))
