"""Scenes6: drawings of six classes on a sheet, 224 x 224 pixels; made by python tools/prepare_scenes.py."""

classes = ['sheet', 'The Eiffel Tower', 'bandage', 'bird', 'bush', 'ceiling fan', 'crab']
palette = [[90, 90, 90], [230, 25, 75], [255, 225, 25], [0, 130, 200], [60, 180, 75], [145, 30, 180], [245, 130, 48]]
load = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]
train_pipeline = [
    *load,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs'),
]
test_pipeline = [*load, dict(type='PackSegInputs')]
shared = dict(
    type='BaseSegDataset',
    data_root='{{$MMPETL_CACHE:~/.cache/mmpetl}}/scenes6',
    metainfo=dict(classes=classes, palette=palette),
    img_suffix='.jpg',
    seg_map_suffix='.png')
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        **shared, data_prefix=dict(img_path='images/train', seg_map_path='labels/train'), pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(**shared, data_prefix=dict(img_path='images/val', seg_map_path='labels/val'), pipeline=test_pipeline))
test_dataloader = dict(
    batch_size=8,
    num_workers=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        **shared, data_prefix=dict(img_path='images/test', seg_map_path='labels/test'), pipeline=test_pipeline))
val_evaluator = test_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
