"""APT with 2 tokens per block on VideoMAE ViT-B, Something-Something V2: APT's recipe with factors that cannot die.

    mmpetl fetch videomae-base-ssv2 ssv2
    python tools/prepare_ssv2.py data/ssv2
    bash tools/dist_train.sh configs/apt/apt-2-strong_videomae-base_ssv2-pre_8xb8-16-coslr-100e_ssv2.py 8

Trainable: 138,462 (3,120 + 135,342 in norm and head).
The published factor max(s, 1) gets no gradient once s < 1, and most of them go there; exp(s) always learns. The start
is the same.
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-base_ssv2.py', '../_base_/schedules/apt_adamw_100e.py']
model = dict(
    backbone=dict(petl=[dict(type='APT', num_tokens=2, drop_rate=0.1, reparam='exp')]),
    cls_head=dict(num_classes=174, label_smooth_eps=0.1))
