"""SynQT's recipe: AdamW with weight decay on everything, 50 epochs, ten of them warm-up from 0, then half a cosine to
1e-6."""

_base_ = './pictures.py'
max_epochs = 50
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=1e-2))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, begin=0, end=10, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', eta_min=1e-6, begin=10, end=max_epochs, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=64)
sweep = dict(grid={}, seeds=[42, 43, 44])
