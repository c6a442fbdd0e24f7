"""BitFit: all biases (arXiv 2106.10199), ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/bitfit_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/bitfit_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 102,912 biases, 769 per class in the head; those of the key projections (9,216) never receive a gradient.
Expected, published (V-PETL Bench), Natural / Specialized / Structured: 73.30 / 78.25 / 44.10; mean of 19 62.05, mean
of 3 groups 65.22. Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit_vtab.py'
model = dict(backbone=dict(tune=['*bias'], trunk='train', petl=[]))
train_dataloader = dict(drop_last=True)
