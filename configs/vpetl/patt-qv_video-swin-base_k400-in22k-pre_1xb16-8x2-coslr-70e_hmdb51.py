"""PATT on queries and values on Video Swin-B, HMDB51, split 1 (V-PETL, arXiv 2210.00788, main table).

    mmpetl fetch video-swin-base hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    python tools/train.py configs/vpetl/patt-qv_video-swin-base_k400-in22k-pre_1xb16-8x2-coslr-70e_hmdb51.py

Trainable: 4,699,699 (4,647,424 + 52,275 in the head).
Recipe: the command of the published README (half precision there: --amp).
Expected top-1: published unknown, measured unknown.
"""

_base_ = '../_base_/recipes/vpetl_hmdb51.py'
model = dict(backbone=dict(petl=[dict(type='PATT', ops='qv', mid_dims=128, scale=0.8)]))
