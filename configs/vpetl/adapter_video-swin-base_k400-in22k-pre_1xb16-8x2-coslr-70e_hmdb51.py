"""Sequential adapter on Video Swin-B, HMDB51, split 1 (V-PETL, arXiv 2210.00788, main table).

    mmpetl fetch video-swin-base hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    python tools/train.py configs/vpetl/adapter_video-swin-base_k400-in22k-pre_1xb16-8x2-coslr-70e_hmdb51.py

Trainable: 1,605,939 (1,553,664 + 52,275 in the head).
Recipe: the command of the published README (half precision there: --amp).
The published code offers this form, its paper's table does not show it.
Expected top-1: published unknown, measured unknown.
"""

_base_ = '../_base_/recipes/vpetl_hmdb51.py'
model = dict(backbone=dict(petl=[dict(type='Adapter', mid_dims=64, kind='pfeiffer', act='relu', scale=0.1)]))
