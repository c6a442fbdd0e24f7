"""APT with 400 tokens per block on VideoMAE ViT-B, UCF101, split 1: APT's recipe with factors that cannot die.

    mmpetl fetch videomae-base-k400 ucf101
    python tools/prepare_ucf101.py data/ucf101
    bash tools/dist_train.sh configs/apt/apt-400-strong_videomae-base_k400-pre_8xb8-16x4-coslr-50e_ucf101.py 8

Trainable: 703,205 (624,000 + 79,205 in norm and head).
The published factor max(s, 1) gets no gradient once s < 1, and most of them go there; exp(s) always learns. The start
is the same.
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-base_ucf101.py', '../_base_/schedules/apt_adamw_50e.py']
model = dict(
    backbone=dict(petl=[dict(type='APT', num_tokens=400, drop_rate=0.1, reparam='exp')]),
    cls_head=dict(num_classes=101, label_smooth_eps=0.1))
