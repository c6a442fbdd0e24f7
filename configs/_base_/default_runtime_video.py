"""What every video config shares: scope, hooks and visualizer of mmaction2."""

_base_ = './runtime.py'
default_scope = 'mmaction'
default_hooks = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    logger=dict(interval=20, ignore_last=False),
    checkpoint=dict(save_best='acc/top1', rule='greater'))
visualizer = dict(type='ActionVisualizer')
