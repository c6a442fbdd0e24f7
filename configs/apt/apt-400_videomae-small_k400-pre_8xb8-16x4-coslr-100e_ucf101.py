"""APT with 400 tokens per block on VideoMAE ViT-S, UCF101, split 1 (APT, arXiv 2403.06978).

    mmpetl fetch videomae-small-k400 ucf101
    python tools/prepare_ucf101.py data/ucf101
    bash tools/dist_train.sh configs/apt/apt-400_videomae-small_k400-pre_8xb8-16x4-coslr-100e_ucf101.py 8

Trainable: 663,653 (624,000 + 39,653 in norm and head).
Recipe: the published script (8 GPUs; mixed precision by --amp). A second script differs in its 6 GPUs only.
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-small_ucf101.py', '../_base_/schedules/apt_adamw_100e.py']
model = dict(
    backbone=dict(petl=[dict(type='APT', num_tokens=400, drop_rate=0.1, reparam='max')]),
    cls_head=dict(num_classes=101, label_smooth_eps=0.1))
