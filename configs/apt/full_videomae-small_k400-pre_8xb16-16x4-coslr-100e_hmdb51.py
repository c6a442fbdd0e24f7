"""Full fine-tuning of VideoMAE ViT-S, HMDB51, split 1 (the baseline of APT, arXiv 2403.06978).

    mmpetl fetch videomae-small-k400 hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    bash tools/dist_train.sh configs/apt/full_videomae-small_k400-pre_8xb16-16x4-coslr-100e_hmdb51.py 8

Trainable: 21,899,571 (everything).
No script for this backbone and data set is published; these are the settings of ViT-B on UCF101.
Expected top-1: published unknown, measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-small_hmdb51.py', '../_base_/schedules/videomae_adamw.py']
blends = [dict(blend, num_classes=51) for blend in _base_.blends]
model = dict(
    data_preprocessor=dict(blending=dict(type='RandomBatchAugment', augments=blends, probs=[0.5, 0.5])),
    backbone=dict(tune=['*'], trunk='train', drop_path_rate=0.2),
    cls_head=dict(num_classes=51, label_smooth_eps=0.1, dropout_ratio=0.5))
train_pipeline = [
    *_base_.train_pipeline[:3], _base_.strong_augment, *_base_.train_pipeline[4:-2], _base_.erase, *_base_.pack
]
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=0.0005), paramwise_cfg=dict(decay_rate=0.7))
