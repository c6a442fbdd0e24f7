"""HMDB51, split 1, as V-PETL reads it: clips of 8 frames at stride 2, multi-scale crops and no flip; tested on 4 clips.

Data: python tools/prepare_hmdb51.py data/hmdb51
The published test has 4 clips of 3 crops, but a centre crop in front of them makes the three equal: 12 views of which 4
differ. One crop per clip gives the same scores in a third of the time. The published validation draws a random clip;
here it is the middle one.
"""

data_root = 'data/hmdb51/'
train_pipeline = [
    dict(type='mmpetl.VideoInit'),
    dict(type='SampleFrames', clip_len=8, frame_interval=2, num_clips=1, out_of_bound_opt='repeat_last'),
    dict(type='mmpetl.VideoDecode'),
    dict(
        type='MultiScaleCrop',
        input_size=224,
        scales=(1, .875, .75, .66),
        random_crop=False,
        num_fixed_crops=13,
        max_wh_scale_gap=1),
    dict(type='Resize', scale=(224, 224), keep_ratio=False),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs'),
]
val_pipeline = [
    dict(type='mmpetl.VideoInit'),
    dict(type='mmpetl.VideoMAESampleFrames', clip_len=8, frame_interval=2, num_clips=1, test_mode=True),
    dict(type='mmpetl.VideoDecode'),
    dict(type='mmpetl.ShortSideResize', size=224),
    dict(type='mmpetl.ViewCrops', crop_size=224, num_crops=1),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs'),
]
test_pipeline = [
    dict(type='mmpetl.VideoInit'),
    dict(type='mmpetl.VideoMAESampleFrames', clip_len=8, frame_interval=2, num_clips=4, test_mode=True),
    dict(type='mmpetl.VideoDecode'),
    dict(type='mmpetl.ShortSideResize', size=224),
    dict(type='mmpetl.ViewCrops', crop_size=224, num_crops=1),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs', meta_keys=('filename', )),
]
data = dict(type='mmpetl.VideoListDataset', data_root=data_root, num_classes=51, on_error='stop')
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(ann_file='split1/train.csv', pipeline=train_pipeline, **data))
val_dataloader = dict(
    batch_size=16,
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
