"""UCF101, split 1, as APT reads it: as HMDB51, tested on 5 clips of 3 crops.

Data: mmpetl fetch ucf101, then python tools/prepare_ucf101.py data/ucf101
Which split is published is not said.
"""

_base_ = './hmdb51_16x4.py'
data = dict(data_root='data/ucf101/', num_classes=101)
test_pipeline = [_base_.test_pipeline[0], dict(_base_.test_pipeline[1], num_clips=5), *_base_.test_pipeline[2:]]
train_dataloader = dict(dataset=data)
val_dataloader = dict(dataset=data)
test_dataloader = dict(dataset=dict(pipeline=test_pipeline, **data))
