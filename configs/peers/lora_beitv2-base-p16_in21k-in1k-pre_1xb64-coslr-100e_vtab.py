"""LoRA on q and v (arXiv 2106.09685), BEiT v2 ViT-B/16 fine-tuned on ImageNet-21k and -1k, VTAB-1k.

    mmpetl fetch beitv2-base vtab
    python tools/train.py configs/peers/lora_beitv2-base-p16_in21k-in1k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/lora_beitv2-base-p16_in21k-in1k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 294,912 in the method, 769 per class in the head.
Expected: unknown, no paper has this base on VTAB-1k; schedule of the neighbouring recipes. Measured: unknown.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/beitv2-base-p16.py', '../_base_/datasets/vtab.py',
    '../_base_/schedules/petl-vit_adamw_100e.py'
]
model = dict(backbone=dict(petl=[dict(type='LoRA', rank=8, ops='qv')]))
train_dataloader = dict(drop_last=True)
