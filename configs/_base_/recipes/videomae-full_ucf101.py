"""VideoMAE's recipe for full fine-tuning on UCF101, split 1: strong augmentation, blending, 16 videos per GPU."""

_base_ = ['../datasets/ucf101_16x4.py', '../schedules/videomae_adamw.py']
blends = [dict(blend, num_classes=101) for blend in _base_.blends]
train_pipeline = [
    *_base_.train_pipeline[:3], _base_.strong_augment, *_base_.train_pipeline[4:-2], _base_.erase, *_base_.pack
]
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=0.0005), paramwise_cfg=dict(decay_rate=0.7))
# the lowest rate is 1e-5 for 256 videos in this script
param_scheduler = [_base_.param_scheduler[0], dict(_base_.param_scheduler[1], eta_min_ratio=2e-2)]
