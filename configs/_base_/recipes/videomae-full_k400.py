"""VideoMAE's recipe for full fine-tuning on Kinetics-400: strong augmentation and blending."""

_base_ = ['../datasets/k400_16x4.py', '../schedules/videomae_adamw.py']
blends = [dict(blend, num_classes=400) for blend in _base_.blends]
train_pipeline = [
    *_base_.train_pipeline[:3], _base_.strong_augment, *_base_.train_pipeline[4:-2], _base_.erase, *_base_.pack
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
