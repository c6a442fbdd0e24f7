"""Full fine-tuning of VideoMAE ViT-S, Something-Something V2 (the baseline of APT, arXiv 2403.06978).

    mmpetl fetch videomae-small-ssv2 ssv2
    python tools/prepare_ssv2.py data/ssv2
    bash tools/dist_train.sh configs/apt/full_videomae-small_ssv2-pre_32xb12-16-coslr-40e_ssv2.py 8

Trainable: 21,946,926 (everything).
Recipe: the published script of VideoMAE (32 GPUs; mixed precision by --amp).
Expected top-1 in %: published 66.8 (VideoMAE's list of models), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-small_ssv2.py', '../_base_/schedules/videomae_adamw.py']
blends = [dict(blend, num_classes=174) for blend in _base_.blends]
model = dict(
    data_preprocessor=dict(blending=dict(type='RandomBatchAugment', augments=blends, probs=[0.5, 0.5])),
    backbone=dict(tune=['*'], trunk='train', drop_path_rate=0.1),
    cls_head=dict(num_classes=174, label_smooth_eps=0.1))
train_pipeline = [
    *_base_.train_pipeline[:3], _base_.strong_augment, *_base_.train_pipeline[4:-2], _base_.erase, *_base_.pack
]
train_dataloader = dict(batch_size=12, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=0.001), paramwise_cfg=dict(decay_rate=0.7))
max_epochs = 40
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], T_max=max_epochs - 5, end=max_epochs, eta_min_ratio=1e-3),
]
