"""The recipe of Convpass and FacT: AdamW, 100 epochs, ten of them warm-up, a cosine over all 100 to 1e-5, stepped per
epoch.

The published runs drop the last, smaller batch (15 iterations per epoch) and step after the epoch, so that their first
two epochs both have the lowest rate; here the second epoch is the first step of the warm-up.
"""

_base_ = './pictures.py'
max_epochs = 100
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-4))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=11),
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-5, begin=0, end=max_epochs),
]
auto_scale_lr = dict(base_batch_size=64)
sweep = dict(grid={}, seeds=[42, 43, 44])
