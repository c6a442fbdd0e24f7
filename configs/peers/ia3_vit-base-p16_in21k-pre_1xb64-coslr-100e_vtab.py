"""(IA)^3 (arXiv 2205.05638), ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/ia3_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/ia3_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 55,296 in the method, 769 per class in the head.
Expected: unknown, the paper has no VTAB-1k table; schedule of the neighbouring recipes. Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit-drop_vtab.py'
model = dict(
    backbone=dict(petl=[dict(type='IA3', ops='kv'), dict(type='IA3', ops='fc2', at='input', name='ia3_ff')]))
