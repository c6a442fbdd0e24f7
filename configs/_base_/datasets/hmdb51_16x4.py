"""HMDB51, split 1, as APT reads it: dense clips of 16 frames, two augmented copies of each; tested on 10 clips of 3
crops.

Data: mmpetl fetch hmdb51, then python tools/prepare_hmdb51.py data/hmdb51
The published validation draws a random clip; here it is the middle one. Which split is published is not said.
"""

_base_ = './video.py'
sample = dict(type='mmpetl.VideoMAESampleFrames', mode='dense', clip_len=16, frame_interval=4)
flip = [dict(type='Flip', flip_ratio=0.5)]
train_pipeline = [
    _base_.init,
    sample,
    _base_.decode,
    dict(type='mmpetl.ClipRandAugment', num_ops=2, magnitude=4, magnitude_std=0.2),
    dict(type='RandomResizedCrop'),
    _base_.squash,
    *flip,
    *_base_.pack,
]
val_pipeline = [_base_.init, dict(test_mode=True, **sample), _base_.decode, *_base_.view]
test_pipeline = [_base_.init, dict(num_clips=10, test_mode=True, **sample), _base_.decode, *_base_.views]
train_dataloader = dict(
    collate_fn=dict(type='repeat_pseudo_collate'), dataset=dict(pipeline=train_pipeline, num_repeats=2))
val_dataloader = dict(dataset=dict(pipeline=val_pipeline))
test_dataloader = dict(dataset=dict(pipeline=test_pipeline))
