"""LoRA on q and v (arXiv 2106.09685), Swin V2-T of transformers at 256 px, VTAB-1k.

    mmpetl fetch vtab
    python tools/train.py configs/backbones/lora_hf-swinv2-tiny_in1k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/backbones/lora_hf-swinv2-tiny_in1k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 141,312 in the method, 769 per class in the head.
Expected: unknown, no published row of this setting is known; schedule of the recipes for ViT-B. Measured: unknown.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/hf_swinv2-tiny.py', '../_base_/datasets/vtab.py',
    '../_base_/schedules/petl-vit_adamw_100e.py'
]
model = dict(backbone=dict(petl=[dict(type='LoRA', rank=8, ops='qv')]))
pipeline = [
    dict(type='mmpetl.LoadImage'),
    dict(type='Resize', scale=(256, 256), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(drop_last=True, dataset=dict(dataset=dict(pipeline=pipeline)))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = val_dataloader
