"""GLoRA (arXiv 2306.07967), all parts in their largest form, ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/glora_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/glora_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 1,825,056 in the method, 769 per class in the head.
Expected: unknown, the published runs search a form for every layer; schedule of the neighbouring recipes.
Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit-drop_vtab.py'
model = dict(backbone=dict(petl=[dict(type='GLoRA', rank=4)]))
