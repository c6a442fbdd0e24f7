"""LoRA on q and v (arXiv 2106.09685), timm's DINOv3 ViT-S/16, VTAB-1k.

    mmpetl fetch vtab
    python tools/train.py configs/backbones/lora_timm-dinov3-small-p16_lvd1689m-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/backbones/lora_timm-dinov3-small-p16_lvd1689m-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 147,456 in the method, 385 per class in the head.
Expected: unknown, no published row of this setting is known; schedule of the recipes for ViT-B. Measured: unknown.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/timm_dinov3-small-p16.py', '../_base_/datasets/vtab.py',
    '../_base_/schedules/petl-vit_adamw_100e.py'
]
model = dict(backbone=dict(petl=[dict(type='LoRA', rank=8, ops='qv')]))
train_dataloader = dict(drop_last=True)
