"""APT's recipe: AdamW, 0.05 for 256 videos, ten epochs warm-up from 0, then half a cosine to 1e-6 for 256 videos; no
decay of 1-D tensors.

The rate is scaled to the actual number of videos per step (the augmented copies do not count): 8 GPUs with 8 have
0.0125, as published.
"""

_base_ = './videos.py'
max_epochs = 100
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(
    optimizer=dict(type='AdamW', lr=0.05, betas=(0.9, 0.999), weight_decay=1e-5),
    paramwise_cfg=dict(norm_decay_mult=0., bias_decay_mult=0.))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=10, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs - 10,
        eta_min_ratio=2e-5,
        begin=10,
        end=max_epochs,
        convert_to_iter_based=True),
]
