"""Something-Something V2 as APT reads it: a frame of each of 16 segments, two augmented copies; tested on 2 clips of
3 crops.

Data: mmpetl fetch ssv2, then python tools/prepare_ssv2.py data/ssv2
No flip: "pushing something from left to right" is a class.
"""

_base_ = './hmdb51_16x4.py'
data = dict(data_root='data/ssv2/', num_classes=174)
uniform = dict(type='mmpetl.VideoMAESampleFrames', mode='uniform', clip_len=16)
train_pipeline = [_base_.init, uniform, *_base_.train_pipeline[2:6], *_base_.pack]
val_pipeline = [_base_.init, dict(test_mode=True, **uniform), *_base_.val_pipeline[2:]]
test_pipeline = [_base_.init, dict(num_clips=2, test_mode=True, **uniform), *_base_.test_pipeline[2:]]
train_dataloader = dict(dataset=dict(ann_file='train.csv', pipeline=train_pipeline, **data))
val_dataloader = dict(dataset=dict(ann_file='val.csv', pipeline=val_pipeline, **data))
test_dataloader = dict(dataset=dict(ann_file='test.csv', pipeline=test_pipeline, **data))
