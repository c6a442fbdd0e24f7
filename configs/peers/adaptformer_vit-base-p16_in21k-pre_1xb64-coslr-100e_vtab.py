"""AdaptFormer (arXiv 2205.13535), ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/adaptformer_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/adaptformer_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 156,768 in the method, 769 per class in the head. Scales per task are not published: the sweep searches
them.
Expected, published (V-PETL Bench), Natural / Specialized / Structured: 80.56 / 84.88 / 58.83; mean of 19 72.32, mean
of 3 groups 74.75. Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit-drop_vtab.py'
model = dict(backbone=dict(petl=[dict(type='AdaptFormer', mid_dims=8, scale=0.1)]))
sweep = dict(grid={'model.backbone.petl.0.scale': [0.01, 0.1, 1., 10., 100.]})
