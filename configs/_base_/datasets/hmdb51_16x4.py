"""HMDB51, split 1, as APT reads it: dense clips of 16 frames, two augmented copies of each; tested on 10 clips of 3
crops.

Data: python tools/prepare_hmdb51.py data/hmdb51
The published validation draws a random clip; here it is the middle one. Which split is published is not said.
"""

data_root = 'data/hmdb51/'
train_pipeline = [
    dict(type='mmpetl.VideoInit'),
    dict(type='mmpetl.VideoMAESampleFrames', mode='dense', clip_len=16, frame_interval=4),
    dict(type='mmpetl.VideoDecode'),
    dict(type='mmpetl.ClipRandAugment', num_ops=2, magnitude=4, magnitude_std=0.2),
    dict(type='RandomResizedCrop'),
    dict(type='Resize', scale=(224, 224), keep_ratio=False),
    dict(type='Flip', flip_ratio=0.5),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs'),
]
val_pipeline = [
    dict(type='mmpetl.VideoInit'),
    dict(type='mmpetl.VideoMAESampleFrames', mode='dense', clip_len=16, frame_interval=4, test_mode=True),
    dict(type='mmpetl.VideoDecode'),
    dict(type='mmpetl.ShortSideResize', size=224),
    dict(type='mmpetl.ViewCrops', crop_size=224, num_crops=1),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs'),
]
test_pipeline = [
    dict(type='mmpetl.VideoInit'),
    dict(type='mmpetl.VideoMAESampleFrames', mode='dense', clip_len=16, frame_interval=4, num_clips=10, test_mode=True),
    dict(type='mmpetl.VideoDecode'),
    dict(type='mmpetl.ShortSideResize', size=224),
    dict(type='mmpetl.ViewCrops', crop_size=224, num_crops=3),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs', meta_keys=('filename', )),
]
data = dict(type='mmpetl.VideoListDataset', data_root=data_root, num_classes=51, on_error='stop')
train_dataloader = dict(
    batch_size=8,
    num_workers=8,
    persistent_workers=True,
    drop_last=True,
    collate_fn=dict(type='repeat_pseudo_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(ann_file='split1/train.csv', pipeline=train_pipeline, num_repeats=2, **data))
val_dataloader = dict(
    batch_size=8,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='split1/val.csv', pipeline=val_pipeline, test_mode=True, **data))
test_dataloader = dict(
    batch_size=1,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='split1/test.csv', pipeline=test_pipeline, test_mode=True, **data))
val_evaluator = dict(type='AccMetric')
test_evaluator = val_evaluator
