"""GPS (arXiv 2312.10136), one weight of every neuron, and biases, ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/gps_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/gps_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 82,944 in the method, 82,944 in biases, 769 per class in the head.
Expected: unknown, no table of the paper was read for this recipe; schedule of the neighbouring recipes.
Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit-drop_vtab.py'
model = dict(
    backbone=dict(
        petl=[dict(type='GPS', num_weights=1)], tune=['*attn*bias', '*ffn*bias']))
