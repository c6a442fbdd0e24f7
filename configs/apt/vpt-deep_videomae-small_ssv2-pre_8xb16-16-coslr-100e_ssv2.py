"""VPT-deep on VideoMAE ViT-S, Something-Something V2 (APT, arXiv 2403.06978).

    mmpetl fetch videomae-small-ssv2 ssv2
    python tools/prepare_ssv2.py data/ssv2
    bash tools/dist_train.sh configs/apt/vpt-deep_videomae-small_ssv2-pre_8xb16-16-coslr-100e_ssv2.py 8

Trainable: 90,798 (23,040 + 67,758 in norm and head).
Five prompts before every block, as the paper compares with; its own settings for this row are not published.
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-small_ssv2.py', '../_base_/schedules/apt_adamw_100e.py']
model = dict(
    backbone=dict(petl=[dict(type='VPT', num_tokens=5, deep=True, drop_rate=0.1)]),
    cls_head=dict(num_classes=174, label_smooth_eps=0.1))
train_dataloader = dict(batch_size=16)
