"""ViT-B/16 (85,798,656 parameters), MoCo v3 on ImageNet-1k; class token after the last norm -> linear head.

Weights: mmpetl fetch vit-base-mocov3
"""

_base_ = './vit-base-p16_in21k.py'
model = dict(
    backbone=dict(
        init_cfg=dict(checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/linear-vit-b-300ep.pth.tar')))
