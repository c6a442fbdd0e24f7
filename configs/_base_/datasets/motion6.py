"""Motion6: drawings that move left, right, up, down, grow or shrink; 360 clips for training, 180 for testing, 24 frames
of 128 x 96 px.

Data: python tools/prepare_motion_clips.py
The drawings are the same in all classes, and the clips of a pair of classes are each other's reverse: motion alone
decides, and whoever ignores the order of the frames is right about half of the time at best. Tested on 2 clips of 3
crops.
"""

data_root = '{{$MMPETL_CACHE:~/.cache/mmpetl}}/motion6'
train_pipeline = [
    dict(type='mmpetl.VideoInit'),
    dict(type='SampleFrames', clip_len=8, frame_interval=2, num_clips=1, out_of_bound_opt='repeat_last'),
    dict(type='mmpetl.VideoDecode'),
    dict(type='RandomResizedCrop', area_range=(0.5, 0.75), aspect_ratio_range=(1., 1.)),
    dict(type='Resize', scale=(70, 70), keep_ratio=False),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs'),
]
val_pipeline = [
    dict(type='mmpetl.VideoInit'),
    dict(type='mmpetl.VideoMAESampleFrames', clip_len=8, frame_interval=2, num_clips=1, test_mode=True),
    dict(type='mmpetl.VideoDecode'),
    dict(type='mmpetl.ShortSideResize', size=70),
    dict(type='mmpetl.ViewCrops', crop_size=70, num_crops=1),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs'),
]
test_pipeline = [
    dict(type='mmpetl.VideoInit'),
    dict(type='mmpetl.VideoMAESampleFrames', clip_len=8, frame_interval=2, num_clips=2, test_mode=True),
    dict(type='mmpetl.VideoDecode'),
    dict(type='mmpetl.ShortSideResize', size=70),
    dict(type='mmpetl.ViewCrops', crop_size=70, num_crops=3),
    dict(type='FormatShape', input_format='NCTHW'),
    dict(type='PackActionInputs', meta_keys=('filename', )),
]
data = dict(type='mmpetl.VideoListDataset', data_root=data_root, num_classes=6, on_error='stop')
train_dataloader = dict(
    batch_size=12,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(ann_file='train.csv', pipeline=train_pipeline, **data))
val_dataloader = dict(
    batch_size=40,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='test.csv', pipeline=val_pipeline, test_mode=True, indices=60, **data))  # a glance
test_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='test.csv', pipeline=test_pipeline, test_mode=True, **data))
val_evaluator = dict(type='AccMetric', metric_options=dict(top_k_accuracy=dict(topk=(1, ))))
# Left and right, up and down, grow and shrink are groups: finding the group needs no order of frames.
test_evaluator = [val_evaluator, dict(type='mmpetl.ViewAccuracy', groups=[0, 0, 1, 1, 2, 2])]
