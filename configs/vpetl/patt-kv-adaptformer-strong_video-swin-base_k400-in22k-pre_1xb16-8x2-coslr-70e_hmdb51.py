"""PATT on keys and values with AdaptFormer on Video Swin-B, HMDB51, split 1: V-PETL's recipe without its slips.

    mmpetl fetch video-swin-base hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    python tools/train.py \
        configs/vpetl/patt-kv-adaptformer-strong_video-swin-base_k400-in22k-pre_1xb16-8x2-coslr-70e_hmdb51.py

Trainable: 6,253,363 (6,201,088 + 52,275 in the head).
Against the faithful recipe it trains with flips, starts from exactly the pretrained network (PATT's up-projection is
zero; the published start perturbs it), keeps drop-path out of the frozen base, and tests on 12 views that differ.
Expected top-1: published unknown, measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/video-swin-base.py',
    '../_base_/datasets/hmdb51_8x2_strong.py', '../_base_/schedules/vpetl_sgd_70e.py'
]
model = dict(
    backbone=dict(trunk='eval', petl=[
        dict(type='PATT', ops='kv', mid_dims=128, scale=0.8, init='zero_up'),
        dict(type='AdaptFormer', mid_dims=64, scale=0.1, input='normed', inside_drop_path=True, drop_rate=0.)
    ]))
