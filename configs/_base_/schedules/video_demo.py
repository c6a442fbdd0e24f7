"""AdamW, half an epoch of linear warm-up, then a cosine to zero; made for a few minutes on two CPU cores."""

_base_ = './pictures.py'
max_epochs = 3
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=1.),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=0.5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=0.5, convert_to_iter_based=True),  # to the last epoch
]
auto_scale_lr = dict(base_batch_size=12)
