"""Linear probe on VideoMAE ViT-B, UCF101, split 1 (APT, arXiv 2403.06978).

    mmpetl fetch videomae-base-k400 ucf101
    python tools/prepare_ucf101.py data/ucf101
    bash tools/dist_train.sh configs/apt/linear_videomae-base_k400-pre_2xb8-16x4-coslr-100e_ucf101.py 2

Trainable: 79,205 (norm and head).
Recipe: the published script (2 GPUs; mixed precision by --amp).
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-base_ucf101.py', '../_base_/schedules/apt_adamw_100e_lr1e-2.py']
model = dict(cls_head=dict(num_classes=101, label_smooth_eps=0.1))
