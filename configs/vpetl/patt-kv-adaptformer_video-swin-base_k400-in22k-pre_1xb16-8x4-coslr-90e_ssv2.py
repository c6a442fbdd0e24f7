"""PATT on keys and values with AdaptFormer (BAPAT) on Video Swin-B, Something-Something V2 (V-PETL, arXiv
2210.00788, main table).

    mmpetl fetch video-swin-base ssv2
    python tools/prepare_ssv2.py data/ssv2
    python tools/train.py configs/vpetl/patt-kv-adaptformer_video-swin-base_k400-in22k-pre_1xb16-8x4-coslr-90e_ssv2.py

Trainable: 6,379,438 (6,201,088 + 178,350 in the head).
Stride and epochs are guesses: no command for this data set is published.
Expected top-1 in %: published 53.36 (as quoted by the V-PETL benchmark), measured unknown.
"""

_base_ = '../_base_/recipes/vpetl_ssv2.py'
model = dict(
    backbone=dict(petl=[
        dict(type='PATT', ops='kv', mid_dims=128, scale=0.8),
        dict(type='AdaptFormer', mid_dims=64, scale=0.1, input='normed', inside_drop_path=True, drop_rate=0.)
    ]),
    cls_head=dict(num_classes=174))
