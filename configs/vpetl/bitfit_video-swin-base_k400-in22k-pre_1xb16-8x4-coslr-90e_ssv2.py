"""BitFit on Video Swin-B, Something-Something V2 (V-PETL, arXiv 2210.00788, main table).

    mmpetl fetch video-swin-base ssv2
    python tools/prepare_ssv2.py data/ssv2
    python tools/train.py configs/vpetl/bitfit_video-swin-base_k400-in22k-pre_1xb16-8x4-coslr-90e_ssv2.py

Trainable: 1,268,726 (1,090,376 + 178,350 in the head).
Stride and epochs are guesses: no command for this data set is published.
Everything with "bias" in its name trains, the tables of relative positions included; only so the published count
comes out.
Expected top-1 in %: published 45.94 (as quoted by the V-PETL benchmark), measured unknown.
"""

_base_ = '../_base_/recipes/vpetl_ssv2.py'
model = dict(backbone=dict(tune=['*bias*']), cls_head=dict(num_classes=174))
