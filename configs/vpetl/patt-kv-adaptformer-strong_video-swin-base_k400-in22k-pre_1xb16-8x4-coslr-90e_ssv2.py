"""PATT on keys and values with AdaptFormer on Video Swin-B, Something-Something V2: V-PETL's recipe without its
slips.

    mmpetl fetch video-swin-base ssv2
    python tools/prepare_ssv2.py data/ssv2
    python tools/train.py \
        configs/vpetl/patt-kv-adaptformer-strong_video-swin-base_k400-in22k-pre_1xb16-8x4-coslr-90e_ssv2.py

Trainable: 6,379,438 (6,201,088 + 178,350 in the head).
Against the faithful recipe it starts from exactly the pretrained network (PATT's up-projection is zero; the published
start perturbs it), keeps drop-path out of the frozen base, and tests on 12 views that differ.
Expected top-1: published unknown, measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/video-swin-base.py',
    '../_base_/datasets/ssv2_8x4_strong.py', '../_base_/schedules/vpetl_sgd_90e.py'
]
model = dict(
    backbone=dict(trunk='eval', petl=[
        dict(type='PATT', ops='kv', mid_dims=128, scale=0.8, init='zero_up'),
        dict(type='AdaptFormer', mid_dims=64, scale=0.1, input='normed', inside_drop_path=True, drop_rate=0.)
    ]),
    cls_head=dict(num_classes=174))
