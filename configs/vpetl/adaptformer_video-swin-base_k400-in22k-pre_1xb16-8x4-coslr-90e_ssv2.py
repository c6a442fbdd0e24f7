"""AdaptFormer on Video Swin-B, Something-Something V2 (V-PETL, arXiv 2210.00788, main table).

    mmpetl fetch video-swin-base ssv2
    python tools/prepare_ssv2.py data/ssv2
    python tools/train.py configs/vpetl/adaptformer_video-swin-base_k400-in22k-pre_1xb16-8x4-coslr-90e_ssv2.py

Trainable: 1,732,014 (1,553,664 + 178,350 in the head).
Stride and epochs are guesses: no command for this data set is published.
The adapter reads the normed input and is dropped with the sublayer, as in the published code of V-PETL (AdaptFormer
itself does neither).
Expected top-1 in %: published 40.80 (as quoted by the V-PETL benchmark), measured unknown.
"""

_base_ = '../_base_/recipes/vpetl_ssv2.py'
model = dict(
    backbone=dict(
        petl=[dict(type='AdaptFormer', mid_dims=64, scale=0.1, input='normed', inside_drop_path=True, drop_rate=0.)]),
    cls_head=dict(num_classes=174))
