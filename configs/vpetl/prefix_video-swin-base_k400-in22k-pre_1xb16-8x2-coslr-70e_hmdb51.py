"""Prefix tuning on Video Swin-B, HMDB51, split 1 (V-PETL, arXiv 2210.00788, main table).

    mmpetl fetch video-swin-base hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    python tools/train.py configs/vpetl/prefix_video-swin-base_k400-in22k-pre_1xb16-8x2-coslr-70e_hmdb51.py

Trainable: 4,892,211 (4,839,936 + 52,275 in the head).
Recipe: the command of the published README (half precision there: --amp).
The published code of this method cannot run; 16 tokens and width 128 are the ones of its command line. The published
count (6.37 M) fits no integer setting.
Expected top-1 in %: published 56.13 (as quoted by the V-PETL benchmark), measured unknown.
"""

_base_ = '../_base_/recipes/vpetl_hmdb51.py'
model = dict(backbone=dict(petl=[dict(type='Prefix', num_tokens=16, mid_dims=128)]))
