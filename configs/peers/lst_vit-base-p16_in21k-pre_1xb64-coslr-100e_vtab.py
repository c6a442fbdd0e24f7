"""Ladder side tuning (arXiv 2206.06522), ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/lst_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/lst_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 2,376,492 in the method, 769 per class in the head.
Expected, published (V-PETL Bench), Natural / Specialized / Structured: 77.60 / 85.55 / 59.61; mean of 19 71.70, mean
of 3 groups 74.25. Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit_vtab.py'
model = dict(backbone=dict(petl=[dict(type='LST', reduction=8)]))
train_dataloader = dict(drop_last=True)
