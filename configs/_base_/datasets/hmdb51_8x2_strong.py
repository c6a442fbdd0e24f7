"""HMDB51, split 1: clips of 8 frames at stride 2 with flips, tested on 4 clips of 3 crops that differ (12 views).

Data: mmpetl fetch hmdb51, then python tools/prepare_hmdb51.py data/hmdb51
"""

_base_ = './hmdb51_8x2.py'
train_pipeline = [*_base_.train_pipeline[:-2], dict(type='Flip', flip_ratio=0.5), *_base_.pack]
test_pipeline = [*_base_.test_pipeline[:3], *_base_.views]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
