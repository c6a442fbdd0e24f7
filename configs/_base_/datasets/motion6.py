"""Motion6: drawings that move left, right, up, down, grow or shrink; 360 clips for training, 180 for testing, 24
frames of 128 x 96 px.

Data: python tools/prepare_motion_clips.py
The drawings are the same in all classes, and the clips of a pair of classes are each other's reverse: motion alone
decides, and whoever ignores the order of the frames is right about half of the time at best. Tested on 2 clips of 3
crops.
"""

_base_ = './hmdb51_8x2.py'
data = dict(data_root='{{$MMPETL_CACHE:~/.cache/mmpetl}}/motion6', num_classes=6)
resize = dict(type='mmpetl.ShortSideResize', size=70)
train_pipeline = [
    *_base_.train_pipeline[:3],
    dict(type='RandomResizedCrop', area_range=(0.5, 0.75), aspect_ratio_range=(1., 1.)),
    dict(type='Resize', scale=(70, 70), keep_ratio=False),
    *_base_.pack,
]
val_pipeline = [
    *_base_.val_pipeline[:3], resize,
    dict(type='mmpetl.ViewCrops', crop_size=70, num_crops=1), *_base_.pack
]
test_pipeline = [
    _base_.init,
    dict(_base_.test_pipeline[1], num_clips=2), _base_.decode, resize,
    dict(type='mmpetl.ViewCrops', crop_size=70, num_crops=3), *_base_.views[2:]
]
here = dict(num_workers=0, persistent_workers=False)
train_dataloader = dict(
    batch_size=12, drop_last=False, dataset=dict(ann_file='train.csv', pipeline=train_pipeline, **data), **here)
val_dataloader = dict(  # a glance
    batch_size=40, dataset=dict(ann_file='test.csv', pipeline=val_pipeline, indices=60, **data), **here)
test_dataloader = dict(batch_size=8, dataset=dict(ann_file='test.csv', pipeline=test_pipeline, **data), **here)
val_evaluator = dict(type='AccMetric', metric_options=dict(top_k_accuracy=dict(topk=(1, ))))
# Left and right, up and down, grow and shrink are groups: finding the group needs no order of frames.
test_evaluator = [val_evaluator, dict(type='mmpetl.ViewAccuracy', groups=[0, 0, 1, 1, 2, 2])]
