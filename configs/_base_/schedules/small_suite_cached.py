"""As small_suite.py, but twenty epochs: for linear probes, SynQT, VQT and LST with mmpetl.FeatureCacheHook, where
epochs cost little."""

_base_ = './quickstart.py'
max_epochs = 20
train_cfg = dict(max_epochs=max_epochs, val_interval=max_epochs)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, end=0.1 * max_epochs, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=0.1 * max_epochs, convert_to_iter_based=True),
]
sweep = dict(
    grid={
        'optim_wrapper.optimizer.lr': [1e-3, 3e-3, 1e-2],
        'optim_wrapper.optimizer.weight_decay': [1e-4, 1e-1]
    },
    seeds=[0, 1, 2])
