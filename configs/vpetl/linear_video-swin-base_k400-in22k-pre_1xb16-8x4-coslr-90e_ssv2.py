"""Linear probe on Video Swin-B, Something-Something V2 (V-PETL, arXiv 2210.00788, main table).

    mmpetl fetch video-swin-base ssv2
    python tools/prepare_ssv2.py data/ssv2
    python tools/train.py configs/vpetl/linear_video-swin-base_k400-in22k-pre_1xb16-8x4-coslr-90e_ssv2.py

Trainable: 178,350 (0 + 178,350 in the head).
Stride and epochs are guesses: no command for this data set is published.
The head trains too (the published default leaves it random and frozen by mistake).
Expected top-1 in %: published 24.13 (as quoted by the V-PETL benchmark), measured unknown.
"""

_base_ = '../_base_/recipes/vpetl_ssv2.py'
model = dict(cls_head=dict(num_classes=174))
