"""RepAdapter (arXiv 2302.08106), ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/rep-adapter_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/rep-adapter_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 239,808 in the method, 769 per class in the head. The sweep searches the scale.
Expected: unknown, no table of the paper was read for this recipe; schedule of the neighbouring recipes.
Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit-drop_vtab.py'
model = dict(backbone=dict(petl=[dict(type='RepAdapter', mid_dims=8)]))
sweep = dict(grid={'model.backbone.petl.0.scale': [0.1, 0.5, 1, 5, 10]})
