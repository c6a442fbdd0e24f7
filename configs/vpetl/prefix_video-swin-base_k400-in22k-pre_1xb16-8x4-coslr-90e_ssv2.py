"""Prefix tuning on Video Swin-B, Something-Something V2 (V-PETL, arXiv 2210.00788, main table).

    mmpetl fetch video-swin-base ssv2
    python tools/prepare_ssv2.py data/ssv2
    python tools/train.py configs/vpetl/prefix_video-swin-base_k400-in22k-pre_1xb16-8x4-coslr-90e_ssv2.py

Trainable: 5,018,286 (4,839,936 + 178,350 in the head).
Stride and epochs are guesses: no command for this data set is published.
The published code of this method cannot run; 16 tokens and width 128 are the ones of its command line. The published
count (6.37 M) fits no integer setting.
Expected top-1 in %: published 39.46 (as quoted by the V-PETL benchmark), measured unknown.
"""

_base_ = '../_base_/recipes/vpetl_ssv2.py'
model = dict(backbone=dict(petl=[dict(type='Prefix', num_tokens=16, mid_dims=128)]), cls_head=dict(num_classes=174))
