"""HMDB51, split 1, as V-PETL reads it: clips of 8 frames at stride 2, multi-scale crops and no flip; tested on 4
clips.

Data: mmpetl fetch hmdb51, then python tools/prepare_hmdb51.py data/hmdb51
The published test has 4 clips of 3 crops, but a centre crop in front of them makes the three equal: 12 views of which
4 differ. One crop per clip gives the same scores in a third of the time. The published validation draws a random
clip; here it is the middle one.
"""

_base_ = './video.py'
stride = 2
sample = dict(type='SampleFrames', clip_len=8, frame_interval=stride, num_clips=1, out_of_bound_opt='repeat_last')
crop = dict(
    type='MultiScaleCrop',
    input_size=224,
    scales=(1, .875, .75, .66),
    random_crop=False,
    num_fixed_crops=13,
    max_wh_scale_gap=1)
evenly = dict(type='mmpetl.VideoMAESampleFrames', clip_len=8, frame_interval=stride, test_mode=True)
train_pipeline = [_base_.init, sample, _base_.decode, crop, _base_.squash, *_base_.pack]
val_pipeline = [_base_.init, dict(num_clips=1, **evenly), _base_.decode, *_base_.view]
test_pipeline = [
    _base_.init,
    dict(num_clips=4, **evenly), _base_.decode, *_base_.view[:-1],
    dict(type='PackActionInputs', meta_keys=('filename', ))
]
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=16, dataset=dict(pipeline=val_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
