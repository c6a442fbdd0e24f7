"""Res-Tuning-Bypass (arXiv 2310.19859), Res-Adapters beside the network, ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/restuningbypass_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/restuningbypass_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 387,324 in the method, 769 per class in the head.
Expected: unknown, no table of the paper was read for this recipe; schedule of the neighbouring recipes.
Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit_vtab.py'
model = dict(backbone=dict(petl=[dict(type='ResTuningBypass')]))
