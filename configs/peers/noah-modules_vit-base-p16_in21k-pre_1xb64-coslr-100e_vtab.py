"""The three modules among which NOAH (arXiv 2206.04673) searches, VPT, LoRA and Adapter, on ViT-B/16 supervised on
ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/noah-modules_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl search configs/peers/noah-modules_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti \
        --space 'model.backbone.petl.0.num_tokens=choice([1, 5, 10, 50])' \
        'model.backbone.petl.0.layers=choice(["0-2", "0-5", "0-8", "0-11"])' \
        'model.backbone.petl.1.rank=choice([1, 5, 10, 50])' \
        'model.backbone.petl.1.layers=choice(["0-2", "0-5", "0-8", "0-11"])' \
        'model.backbone.petl.2.mid_dims=choice([1, 5, 10, 50])' \
        'model.backbone.petl.2.layers=choice(["0-2", "0-5", "0-8", "0-11"])'

Trainable: 543,840 in the methods, 769 per class in the head.
The paper trains one network with all sizes, layer by layer, and searches in it by evolution. Here every candidate is a
run of its own, with one size per module, and the sizes above are not the paper's.
Expected: unknown, no search of this kind is published. Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit-drop_vtab.py'
model = dict(
    backbone=dict(
        petl=[
            dict(type='VPT', num_tokens=10),
            dict(type='LoRA', rank=8, ops='qv'),
            dict(type='Adapter', mid_dims=8, kind='pfeiffer')
        ]))
