"""VPT's recipe for full fine-tuning: AdamW, 100 epochs, five of them warm-up, then half a cosine, stepped per epoch.

The rates of the grid are for 256 images, as in the published code.
"""

_base_ = './vpt_sgd_100e.py'
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type='AdamW', lr=1e-4, weight_decay=1e-2))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-8, begin=0, end=6),
    dict(type='CosineAnnealingLR', T_max=95, begin=5, end=100),
]
sweep = dict(grid={'optim_wrapper.optimizer.lr': [1e-4, 5e-4, 1e-3, 5e-3]})
