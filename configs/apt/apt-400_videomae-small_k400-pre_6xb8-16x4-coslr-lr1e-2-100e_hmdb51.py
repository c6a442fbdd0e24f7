"""APT with 400 tokens per block and the rate 0.01 on VideoMAE ViT-S, HMDB51, split 1 (APT, arXiv 2403.06978).

    mmpetl fetch videomae-small-k400 hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    bash tools/dist_train.sh configs/apt/apt-400_videomae-small_k400-pre_6xb8-16x4-coslr-lr1e-2-100e_hmdb51.py 6

Trainable: 644,403 (624,000 + 20,403 in norm and head).
Recipe: the published script (6 GPUs; mixed precision by --amp).
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-small_hmdb51.py', '../_base_/schedules/apt_adamw_100e_lr1e-2.py']
model = dict(
    backbone=dict(petl=[dict(type='APT', num_tokens=400, drop_rate=0.1, reparam='max')]),
    cls_head=dict(num_classes=51, label_smooth_eps=0.1))
