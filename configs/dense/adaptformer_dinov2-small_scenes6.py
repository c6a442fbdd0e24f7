"""AdaptFormer in all blocks, semantic segmentation of Scenes6 (six classes and the sheet).

    python tools/prepare_scenes.py
    python tools/train.py configs/dense/adaptformer_dinov2-small_scenes6.py

Trainable: 595,200 parameters in AdaptFormer and 2,695 in the head.
mIoU on the 48 test scenes: unknown.
"""

_base_ = '../_base_/recipes/scenes6.py'
model = dict(backbone=dict(petl=[dict(type='AdaptFormer', mid_dims=64, scale=0.1)]))
