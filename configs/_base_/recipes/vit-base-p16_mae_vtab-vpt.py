"""ViT-B/16, MAE, VTAB-1k as VPT reads it."""

_base_ = ['../default_runtime.py', '../backbones/vit-base-p16_mae.py', '../datasets/vtab_vpt.py']
