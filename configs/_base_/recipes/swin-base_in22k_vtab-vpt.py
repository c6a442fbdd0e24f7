"""Swin-B supervised on ImageNet-22k, VTAB-1k as VPT reads it."""

_base_ = ['../default_runtime.py', '../backbones/swin-base_in22k.py', '../datasets/vtab_vpt.py']
