"""ViT-B/16, MoCo v3, VTAB-1k as VPT reads it."""

_base_ = ['../default_runtime.py', '../backbones/vit-base-p16_mocov3.py', '../datasets/vtab_vpt.py']
