"""Sequential adapter on Video Swin-B, Something-Something V2 (V-PETL, arXiv 2210.00788, main table).

    mmpetl fetch video-swin-base ssv2
    python tools/prepare_ssv2.py data/ssv2
    python tools/train.py configs/vpetl/adapter_video-swin-base_k400-in22k-pre_1xb16-8x4-coslr-90e_ssv2.py

Trainable: 1,732,014 (1,553,664 + 178,350 in the head).
Stride and epochs are guesses: no command for this data set is published.
The published code offers this form, its paper's table does not show it.
Expected top-1: published unknown, measured unknown.
"""

_base_ = '../_base_/recipes/vpetl_ssv2.py'
model = dict(
    backbone=dict(petl=[dict(type='Adapter', mid_dims=64, kind='pfeiffer', act='relu', scale=0.1)]),
    cls_head=dict(num_classes=174))
