"""APT with 2 tokens per block on VideoMAE ViT-B, Something-Something V2 (APT, arXiv 2403.06978).

    mmpetl fetch videomae-base-ssv2 ssv2
    python tools/prepare_ssv2.py data/ssv2
    bash tools/dist_train.sh configs/apt/apt-2_videomae-base_ssv2-pre_8xb8-16-coslr-100e_ssv2.py 8

Trainable: 138,462 (3,120 + 135,342 in norm and head).
Recipe: the published script (8 GPUs; mixed precision by --amp). The script starts from weights of Something-Something
V2, the published list of models says Kinetics-400. A second script differs in its 6 GPUs only.
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-base_ssv2.py', '../_base_/schedules/apt_adamw_100e.py']
model = dict(
    backbone=dict(petl=[dict(type='APT', num_tokens=2, drop_rate=0.1, reparam='max')]),
    cls_head=dict(num_classes=174, label_smooth_eps=0.1))
