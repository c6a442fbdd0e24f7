"""Pictures of one's own: lists that 'mmpetl data make' writes, or any that mmpetl.ListDataset reads.

Short edge 256, a random 224 crop and flip for training, the centre crop for testing. Where left and right tell classes
apart, take RandomFlip out of train_pipeline. Models with other statistics of pixels say so in their base file.
"""

data_preprocessor = dict(
    type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
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
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(ann_file='train.txt', pipeline=train_pipeline, **data))
val_dataloader = dict(
    batch_size=64,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='val.txt', pipeline=test_pipeline, test_mode=True, **data))
test_dataloader = dict(
    batch_size=64,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='test.txt', pipeline=test_pipeline, test_mode=True, **data))
val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, ))
test_evaluator = val_evaluator
