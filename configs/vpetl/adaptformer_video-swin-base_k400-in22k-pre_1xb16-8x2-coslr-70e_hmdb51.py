"""AdaptFormer on Video Swin-B, HMDB51, split 1 (V-PETL, arXiv 2210.00788, main table).

    mmpetl fetch video-swin-base hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    python tools/train.py configs/vpetl/adaptformer_video-swin-base_k400-in22k-pre_1xb16-8x2-coslr-70e_hmdb51.py

Trainable: 1,605,939 (1,553,664 + 52,275 in the head).
Recipe: the command of the published README (half precision there: --amp).
The adapter reads the normed input and is dropped with the sublayer, as in the published code of V-PETL (AdaptFormer
itself does neither).
Expected top-1 in %: published 68.66 (as quoted by the V-PETL benchmark), measured unknown.
"""

_base_ = '../_base_/recipes/vpetl_hmdb51.py'
model = dict(
    backbone=dict(
        petl=[dict(type='AdaptFormer', mid_dims=64, scale=0.1, input='normed', inside_drop_path=True, drop_rate=0.)]))
