"""Something-Something V2 as V-PETL reads it: clips of 8 frames at stride 4, multi-scale crops, no flip; tested on 4
clips.

Data: mmpetl fetch ssv2, then python tools/prepare_ssv2.py data/ssv2
The stride is the default of the published code; no command for this data set is published. Crops and validation: see
hmdb51_8x2.py.
"""

_base_ = './hmdb51_8x2.py'
data = dict(data_root='data/ssv2/', num_classes=174)
stride = 4
train_pipeline, val_pipeline, test_pipeline = ([
    pipeline[0], dict(pipeline[1], frame_interval=stride), *pipeline[2:]
] for pipeline in (_base_.train_pipeline, _base_.val_pipeline, _base_.test_pipeline))
train_dataloader = dict(dataset=dict(ann_file='train.csv', pipeline=train_pipeline, **data))
val_dataloader = dict(dataset=dict(ann_file='val.csv', pipeline=val_pipeline, **data))
test_dataloader = dict(dataset=dict(ann_file='test.csv', pipeline=test_pipeline, **data))
