"""Adapter (arXiv 1902.00751), after the feed-forward sublayer, ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/adapter_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/adapter_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 156,768 in the method, 769 per class in the head.
Expected, published (V-PETL Bench), Natural / Specialized / Structured: 79.01 / 84.08 / 58.49; mean of 19 71.44, mean
of 3 groups 73.86. Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit-drop_vtab.py'
model = dict(backbone=dict(petl=[dict(type='Adapter', kind='pfeiffer', mid_dims=8)]))
