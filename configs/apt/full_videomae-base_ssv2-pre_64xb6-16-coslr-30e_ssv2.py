"""Full fine-tuning of VideoMAE ViT-B, Something-Something V2 (the baseline of APT, arXiv 2403.06978).

    mmpetl fetch videomae-base-ssv2 ssv2
    python tools/prepare_ssv2.py data/ssv2
    bash tools/dist_train.sh configs/apt/full_videomae-base_ssv2-pre_64xb6-16-coslr-30e_ssv2.py 8

Trainable: 86,361,006 (everything).
Recipe: the published script of VideoMAE (64 GPUs; mixed precision by --amp).
Expected top-1 in %: published 70.8 (VideoMAE's list of models), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-base_ssv2.py', '../_base_/schedules/videomae_adamw.py']
blends = [dict(blend, num_classes=174) for blend in _base_.blends]
model = dict(
    data_preprocessor=dict(blending=dict(type='RandomBatchAugment', augments=blends, probs=[0.5, 0.5])),
    backbone=dict(tune=['*'], trunk='train', drop_path_rate=0.1),
    cls_head=dict(num_classes=174, label_smooth_eps=0.1))
train_pipeline = [
    *_base_.train_pipeline[:3], _base_.strong_augment, *_base_.train_pipeline[4:-2], _base_.erase, *_base_.pack
]
train_dataloader = dict(batch_size=6, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=0.0005), paramwise_cfg=dict(decay_rate=0.75))
max_epochs = 30
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], T_max=max_epochs - 5, end=max_epochs),
]
