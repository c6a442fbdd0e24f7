"""What every config of semantic segmentation shares: scope and visualizer of mmsegmentation, which
`pip install mmpetl[dense]` brings."""

_base_ = './runtime.py'
default_scope = 'mmseg'
default_hooks = dict(logger=dict(interval=10), visualization=dict(type='SegVisualizationHook'))
visualizer = dict(type='SegLocalVisualizer')
log_processor = dict(by_epoch=True)
