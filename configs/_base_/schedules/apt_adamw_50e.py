"""APT's recipe with 50 epochs, as published for ViT-B on UCF101.

"""

_base_ = './apt_adamw_100e.py'
max_epochs = 50
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], T_max=max_epochs - 10, end=max_epochs),
]
