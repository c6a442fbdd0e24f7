"""Linear probe: DINOv2 ViT-S/14 stays as it is, a linear head learns Quick, Draw! (20 classes).

    python tools/fetch_data.py dinov2-vits14 quickdraw20
    python tools/train.py configs/quickstart/linear.py

Trainable: 7,700 parameters, all in the head. The features are computed once, so twenty epochs cost no more than one.
Accuracy on the 600 test drawings, measured on CPU with seed 0: 72.8 %.
"""

_base_ = '../_base_/recipes/quickstart.py'
model = dict(backbone=dict(img_size=98), head=dict(num_classes=20))
max_epochs = 20
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=0.1 * max_epochs, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=0.1 * max_epochs, end=max_epochs, convert_to_iter_based=True),
]
default_hooks = dict(logger=dict(interval=44), checkpoint=dict(interval=max_epochs))
custom_hooks = [
    dict(type='mmpetl.AdapterHook'),
    dict(type='mmpetl.GradientAuditHook'),
    dict(type='mmpetl.FeatureCacheHook')
]
