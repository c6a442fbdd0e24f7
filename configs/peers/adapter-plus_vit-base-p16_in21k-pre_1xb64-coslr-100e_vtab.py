"""Adapter+ (arXiv 2406.06820), ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/adapter-plus_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/adapter-plus_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 165,984 in the method, 769 per class in the head. One setting for all tasks, as published.
Expected: published, mean of 3 groups: unknown here (the paper's tables are not at hand). Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit-drop_vtab.py'
model = dict(backbone=dict(petl=[dict(type='AdapterPlus', mid_dims=8, drop_path_rate=0.1)]))
