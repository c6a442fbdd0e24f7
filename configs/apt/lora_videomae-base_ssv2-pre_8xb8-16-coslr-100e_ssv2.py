"""LoRA on VideoMAE ViT-B, Something-Something V2 (APT, arXiv 2403.06978).

    mmpetl fetch videomae-base-ssv2 ssv2
    python tools/prepare_ssv2.py data/ssv2
    bash tools/dist_train.sh configs/apt/lora_videomae-base_ssv2-pre_8xb8-16-coslr-100e_ssv2.py 8

Trainable: 430,254 (294,912 + 135,342 in norm and head).
Settings for this row are not published.
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-base_ssv2.py', '../_base_/schedules/apt_adamw_100e_lr2e-3.py']
model = dict(
    backbone=dict(petl=[dict(type='LoRA', rank=8, ops='qv')]),
    cls_head=dict(num_classes=174, label_smooth_eps=0.1))
