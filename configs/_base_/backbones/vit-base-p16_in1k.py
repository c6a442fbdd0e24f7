"""ViT-B/16 (85,798,656 parameters), supervised on ImageNet-21k and fine-tuned on ImageNet-1k, as timm 0.3 names it.

Weights: mmpetl fetch vit-base-in1k
"""

_base_ = './vit-base-p16_in21k.py'
model = dict(
    backbone=dict(init_cfg=dict(checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/jx_vit_base_p16_224-80ecf9dd.pth')))
