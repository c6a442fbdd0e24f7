"""Something-Something V2 as APT reads it: a frame of each of 16 segments, two augmented copies; tested on 2 clips of 3
crops.

Data: python tools/prepare_ssv2.py data/ssv2
No flip: "pushing something from left to right" is a class.
"""

data_root = 'data/ssv2/'
train_pipeline = [
    dict(type='mmpetl.VideoInit'),
    dict(type='mmpetl.VideoMAESampleFrames', mode='uniform', clip_len=16),
    dict(type='mmpetl.VideoDecode'),
    dict(type='mmpetl.ClipRandAugment', num_ops=2, magnitude=4, magnitude_std=0.2),
    dict(type='RandomResizedCrop'),
    dict(type='Resize', scale=(224, 224), keep_ratio=False),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs'),
]
val_pipeline = [
    dict(type='mmpetl.VideoInit'),
    dict(type='mmpetl.VideoMAESampleFrames', mode='uniform', clip_len=16, test_mode=True),
    dict(type='mmpetl.VideoDecode'),
    dict(type='mmpetl.ShortSideResize', size=224),
    dict(type='mmpetl.ViewCrops', crop_size=224, num_crops=1),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs'),
]
test_pipeline = [
    dict(type='mmpetl.VideoInit'),
    dict(type='mmpetl.VideoMAESampleFrames', mode='uniform', clip_len=16, num_clips=2, test_mode=True),
    dict(type='mmpetl.VideoDecode'),
    dict(type='mmpetl.ShortSideResize', size=224),
    dict(type='mmpetl.ViewCrops', crop_size=224, num_crops=3),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs', meta_keys=('filename', )),
]
data = dict(type='mmpetl.VideoListDataset', data_root=data_root, num_classes=174, on_error='stop')
train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type='repeat_pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(ann_file='train.csv', pipeline=train_pipeline, num_repeats=2, **data))
val_dataloader = dict(
    batch_size=8,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='val.csv', pipeline=val_pipeline, test_mode=True, **data))
test_dataloader = dict(
    batch_size=1,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='test.csv', pipeline=test_pipeline, test_mode=True, **data))
val_evaluator = dict(type='AccMetric')
test_evaluator = val_evaluator
