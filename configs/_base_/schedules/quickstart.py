"""AdamW, a tenth of the iterations linear warm-up, then a cosine to zero; made for a few minutes on two CPU cores."""

_base_ = './pictures.py'
max_epochs = 3
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.01),
    # the head starts from nothing, the methods from a pretrained model
    paramwise_cfg=dict(custom_keys={'head.': dict(lr_mult=3)}))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=0.1 * max_epochs, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=0.1 * max_epochs, convert_to_iter_based=True),  # to the last epoch
]
auto_scale_lr = dict(base_batch_size=32)
