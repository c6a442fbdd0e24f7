"""AdamW, a tenth of the epochs linear warm-up, then a cosine to zero; a start for data of one's own, not tuned on any.

'mmpetl data make' sets the number of epochs by the number of samples.
"""

_base_ = './pictures.py'
max_epochs = 20
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=2)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
    clip_grad=dict(max_norm=1.),
    # the head starts from nothing, the methods from a pretrained model
    paramwise_cfg=dict(custom_keys={'head.': dict(lr_mult=3)}, norm_decay_mult=0., bias_decay_mult=0.))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, begin=0, end=2, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=2, end=max_epochs, convert_to_iter_based=True),
]
auto_scale_lr = dict(base_batch_size=32)
