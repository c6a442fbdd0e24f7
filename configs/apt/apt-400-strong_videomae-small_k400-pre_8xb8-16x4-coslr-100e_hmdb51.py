"""APT with 400 tokens per block on VideoMAE ViT-S, HMDB51, split 1: APT's recipe with factors that cannot die.

    mmpetl fetch videomae-small-k400 hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    bash tools/dist_train.sh configs/apt/apt-400-strong_videomae-small_k400-pre_8xb8-16x4-coslr-100e_hmdb51.py 8

Trainable: 644,403 (624,000 + 20,403 in norm and head).
The published factor max(s, 1) gets no gradient once s < 1, and most of them go there; exp(s) always learns. The start
is the same.
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-small_hmdb51.py', '../_base_/schedules/apt_adamw_100e.py']
model = dict(
    backbone=dict(petl=[dict(type='APT', num_tokens=400, drop_rate=0.1, reparam='exp')]),
    cls_head=dict(num_classes=51, label_smooth_eps=0.1))
