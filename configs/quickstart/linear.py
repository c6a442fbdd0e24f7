"""Linear probe: DINOv2 ViT-S/14 stays as it is, a linear head learns Quick, Draw! (20 classes).

    python tools/fetch_data.py dinov2-vits14 quickdraw20
    python tools/train.py configs/quickstart/linear.py

Trainable: 7,700 parameters, all in the head.
Expected accuracy on the 600 test drawings: unknown.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/dinov2-small.py', '../_base_/datasets/quickdraw20.py',
    '../_base_/schedules/quickstart.py'
]
model = dict(backbone=dict(img_size=98), head=dict(num_classes=20))
optim_wrapper = dict(optimizer=dict(lr=1e-2))
