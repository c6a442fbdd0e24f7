"""Linear probe on VideoMAE ViT-S, HMDB51, split 1 (APT, arXiv 2403.06978).

    mmpetl fetch videomae-small-k400 hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    bash tools/dist_train.sh configs/apt/linear_videomae-small_k400-pre_8xb8-16x4-coslr-100e_hmdb51.py 8

Trainable: 20,403 (norm and head).
The published linear probe (UCF101, ViT-B) has 0.01 for 256 videos; no script for this row is published.
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-small_hmdb51.py', '../_base_/schedules/apt_adamw_100e_lr1e-2.py']
model = dict(cls_head=dict(num_classes=51, label_smooth_eps=0.1))
