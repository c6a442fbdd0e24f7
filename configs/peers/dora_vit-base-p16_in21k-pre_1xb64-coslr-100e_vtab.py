"""DoRA on q and v (arXiv 2402.09353), ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/dora_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/dora_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 313,344 in the method, 769 per class in the head. The sweep searches the scale alpha / rank.
Expected: unknown, the paper has no VTAB-1k table; schedule of the neighbouring recipes. Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit-drop_vtab.py'
model = dict(backbone=dict(petl=[dict(type='DoRA', rank=8, ops='qv')]))
sweep = dict(grid={'model.backbone.petl.0.alpha': [0.08, 0.8, 8, 80]})
