"""LoRA on q and v (arXiv 2106.09685), DeiT III ViT-S/16 on ImageNet-1k, VTAB-1k.

    mmpetl fetch deit3-small vtab
    python tools/train.py configs/backbones/lora_deit3-small-p16_in1k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/backbones/lora_deit3-small-p16_in1k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 147,456 in the method, 385 per class in the head.
Expected: unknown, no published row of this setting is known; schedule of the recipes for ViT-B. Measured: unknown.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/deit3-small-p16_in1k.py', '../_base_/datasets/vtab.py',
    '../_base_/schedules/petl-vit_adamw_100e.py'
]
model = dict(backbone=dict(petl=[dict(type='LoRA', rank=8, ops='qv')]))
train_dataloader = dict(drop_last=True)
