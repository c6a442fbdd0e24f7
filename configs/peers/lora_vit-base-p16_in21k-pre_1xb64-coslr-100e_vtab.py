"""LoRA on q and v (arXiv 2106.09685), ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/lora_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/lora_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 294,912 in the method, 769 per class in the head. The sweep searches the scale alpha / rank.
Expected, published (V-PETL Bench), Natural / Specialized / Structured: 79.49 / 84.55 / 59.77; mean of 19 72.25, mean
of 3 groups 74.60. Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit-drop_vtab.py'
model = dict(backbone=dict(petl=[dict(type='LoRA', rank=8, ops='qv')]))
sweep = dict(grid={'model.backbone.petl.0.alpha': [0.08, 0.8, 8, 80, 800]})
