"""PATT on queries, keys and values on Video Swin-B, Something-Something V2 (V-PETL, arXiv 2210.00788, main table).

    mmpetl fetch video-swin-base ssv2
    python tools/prepare_ssv2.py data/ssv2
    python tools/train.py configs/vpetl/patt-qkv_video-swin-base_k400-in22k-pre_1xb16-8x4-coslr-90e_ssv2.py

Trainable: 6,377,902 (6,199,552 + 178,350 in the head).
Stride and epochs are guesses: no command for this data set is published.
Expected top-1: published unknown, measured unknown.
"""

_base_ = '../_base_/recipes/vpetl_ssv2.py'
model = dict(
    backbone=dict(petl=[dict(type='PATT', ops='qkv', mid_dims=128, scale=0.8)]), cls_head=dict(num_classes=174))
