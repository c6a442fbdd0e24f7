"""Linear probe on VideoMAE ViT-B, Something-Something V2 (APT, arXiv 2403.06978).

    mmpetl fetch videomae-base-ssv2 ssv2
    python tools/prepare_ssv2.py data/ssv2
    bash tools/dist_train.sh configs/apt/linear_videomae-base_ssv2-pre_8xb8-16-coslr-100e_ssv2.py 8

Trainable: 135,342 (norm and head).
The published linear probe (UCF101, ViT-B) has 0.01 for 256 videos; no script for this row is published.
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-base_ssv2.py', '../_base_/schedules/apt_adamw_100e_lr1e-2.py']
model = dict(cls_head=dict(num_classes=174, label_smooth_eps=0.1))
