"""V-PETL's recipe: SGD with momentum 0.9 and no weight decay, 0.1 for 256 videos, ten epochs warm-up from 0, then half
a cosine to 0.

The rate is scaled to the actual number of videos per step: one GPU with 16 has 0.00625, as published.
"""

_base_ = './videos.py'
max_epochs = 70
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=0.))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs - 10,
        eta_min=0.,
        begin=10,
        end=max_epochs,
        convert_to_iter_based=True),
]
