"""CLIP's image tower ViT-B/16 with its projection (86,192,640 parameters); otherwise as ViT-B/32.

Weights: mmpetl fetch clip-vit-base-p16
Text features: mmpetl fetch elevater-prompts, then python tools/text_features.py clip-vit-base-p16 --suite elevater
"""

_base_ = './clip-vit-base-p32.py'
checkpoint = _base_.cache + '/ViT-B-16.pt'
model = dict(
    backbone=dict(patch_size=16, init_cfg=dict(checkpoint=checkpoint)),
    neck=dict(checkpoint=checkpoint),
    head=dict(text_features=_base_.cache + '/text_features/openai-vit-b-16/{task}.npz'))
