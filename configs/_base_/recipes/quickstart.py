"""DINOv2 ViT-S/14, Quick, Draw!, a few minutes on two CPU cores."""

_base_ = [
    '../default_runtime.py', '../backbones/dinov2-small.py', '../datasets/quickdraw20.py',
    '../schedules/quickstart.py'
]
