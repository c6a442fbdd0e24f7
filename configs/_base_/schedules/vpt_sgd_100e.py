"""VPT's and E2VPT's recipe: SGD, 100 epochs, ten of them warm-up, then half a cosine, stepped per epoch; the first
epoch has rate 0.

``lr`` is the base rate for 256 images, as in the papers' tables; it is scaled to the actual batch. Learning rate and
weight decay are searched for each task ('mmpetl sweep'); the values here are for a single run. Testing is done once,
after the last epoch.
"""

_base_ = './pictures.py'
max_epochs = 100
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=max_epochs)
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=2.5, momentum=0.9, weight_decay=1e-3),
    paramwise_cfg=dict(custom_keys={'head.fc.bias': dict(decay_mult=0.)}))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, begin=0, end=11),
    dict(type='CosineAnnealingLR', T_max=90, begin=10, end=max_epochs),
]
auto_scale_lr = dict(base_batch_size=256, enable=True)
# Among equal scores the first is taken: the smallest rate, as published.
sweep = dict(
    grid={
        'optim_wrapper.optimizer.lr': [.05, .1, .25, .5, 1., 2.5, 5., 10., 25., 50.],
        'optim_wrapper.optimizer.weight_decay': [.01, .001, .0001, 0.],
    },
    seeds=[42, 44, 82, 100, 800])
# How VPT starts its head: Kaiming-normal over the outputs, bias -ln 99.
head_init = dict(
    type='Kaiming',
    layer='Linear',
    mode='fan_out',
    nonlinearity='relu',
    distribution='normal',
    bias=-4.59511985013459)
