"""ViT-B/16 supervised on ImageNet-21k, VTAB-1k as VPT reads it."""

_base_ = ['../default_runtime.py', '../backbones/vit-base-p16_in21k.py', '../datasets/vtab_vpt.py']
