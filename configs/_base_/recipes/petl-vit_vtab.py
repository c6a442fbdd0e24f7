"""ViT-B/16 supervised on ImageNet-21k, VTAB-1k, the recipe of Convpass and FacT."""

_base_ = [
    '../default_runtime.py', '../backbones/vit-base-p16_in21k.py', '../datasets/vtab.py',
    '../schedules/petl-vit_adamw_100e.py'
]
