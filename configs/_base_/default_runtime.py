"""What every image config shares: scope, hooks and visualizer of mmpretrain."""

_base_ = './runtime.py'
default_scope = 'mmpretrain'
default_hooks = dict(logger=dict(interval=10), visualization=dict(type='VisualizationHook', enable=False))
visualizer = dict(type='UniversalVisualizer')
