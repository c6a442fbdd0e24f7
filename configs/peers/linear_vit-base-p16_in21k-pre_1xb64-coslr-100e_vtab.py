"""Linear probe, ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/linear_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/linear_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 769 per class in the head.
Expected: unknown (VPT's table is of another recipe, see configs/e2vpt). Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit_vtab.py'
model = dict(backbone=dict(petl=[]))
sweep = dict(grid={
    'optim_wrapper.optimizer.lr': [1e-1, 1e-2, 1e-3],
    'optim_wrapper.optimizer.weight_decay': [1e-2, 1e-4, 0.]
})
