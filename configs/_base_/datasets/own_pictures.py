"""Pictures of one's own: lists that 'mmpetl data make' writes, or any that mmpetl.ListDataset reads.

Short edge 256, a random 224 crop and flip for training, the centre crop for testing. Where left and right tell classes
apart, take RandomFlip out of train_pipeline. Models with other statistics of pixels say so in their base file.
"""

_base_ = './pictures.py'
train_pipeline = [
    dict(type='mmpetl.LoadImage'),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='RandomCrop', crop_size=224),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [
    dict(type='mmpetl.LoadImage'),
    dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
data = dict(type='mmpetl.ListDataset', data_root='data/own', classes='classes.txt')
train_dataloader = dict(
    batch_size=32,
    num_workers=4,
    dataset=dict(ann_file='train.txt', pipeline=train_pipeline, **data))
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    dataset=dict(ann_file='val.txt', pipeline=test_pipeline, test_mode=True, **data))
test_dataloader = dict(
    batch_size=64,
    num_workers=4,
    dataset=dict(ann_file='test.txt', pipeline=test_pipeline, test_mode=True, **data))
