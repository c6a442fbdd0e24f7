"""DeiT-B/16 (85,798,656 parameters), supervised on ImageNet-1k.

Weights: mmpetl fetch deit-base
"""

_base_ = './vit-base-p16_in21k.py'
model = dict(
    backbone=dict(init_cfg=dict(checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/deit_base_patch16_224-b5f2ef4d.pth')))
