"""Mona (arXiv 2408.08345), Swin-B supervised on ImageNet-22k, VTAB-1k.

    mmpetl fetch swin-base-in22k vtab
    python tools/train.py configs/peers/mona_swin-base_in22k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/mona_swin-base_in22k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 3,667,456 in the method, 1,025 per class in the head.
Expected: unknown, the paper has no VTAB-1k table; schedule of the neighbouring recipes. Measured: unknown.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/swin-base_in22k.py', '../_base_/datasets/vtab.py',
    '../_base_/schedules/petl-vit_adamw_100e.py'
]
model = dict(backbone=dict(petl=[dict(type='Mona', mid_dims=64)]))
train_dataloader = dict(drop_last=True)
