"""AdamW, a tenth of the iterations linear warm-up, then a cosine to zero; four epochs: a few minutes per data set on
one CPU core."""

_base_ = './quickstart.py'
max_epochs = 4
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=0.1 * max_epochs, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=0.1 * max_epochs, convert_to_iter_based=True),
]
sweep = dict(grid={'optim_wrapper.optimizer.lr': [3e-4, 1e-3, 3e-3]}, seeds=[0, 1, 2])
