"""SCT (arXiv 2309.08513), 96 channels behind attention, ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/sct_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/sct_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 111,744 in the method, 769 per class in the head.
Expected: unknown; published runs choose a scale for each task, known here for
SVHN only (0.15), so a sweep compares a few.
Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit-drop_vtab.py'
model = dict(backbone=dict(petl=[dict(type='SCT', num_channels=96)]))
sweep = dict(grid={'model.backbone.petl.0.scale': [0.05, 0.15, 0.5, 1.]})
