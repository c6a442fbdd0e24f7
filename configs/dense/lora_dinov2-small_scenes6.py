"""LoRA on q, k and v of all blocks, semantic segmentation of Scenes6 (six classes and the sheet).

    python tools/prepare_scenes.py
    python tools/train.py configs/dense/lora_dinov2-small_scenes6.py

Trainable: 221,184 parameters in LoRA and 2,695 in the head.
mIoU on the 48 test scenes, measured on CPU with seed 0: 58.0 %.
"""

_base_ = '../_base_/recipes/scenes6.py'
model = dict(backbone=dict(petl=[dict(type='LoRA', rank=8, alpha=16, ops='qkv')]))
