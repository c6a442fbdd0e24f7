"""What the recipes on Scenes6 share."""

_base_ = [
    '../default_runtime_dense.py', '../backbones/seg_dinov2-small.py', '../datasets/scenes6.py',
    '../schedules/quickstart.py'
]
max_epochs = 5
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3), paramwise_cfg=dict(_delete_=True, custom_keys={'decode_head.': dict(lr_mult=3)}))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=1, convert_to_iter_based=True),
]
auto_scale_lr = dict(_delete_=True, base_batch_size=8)
