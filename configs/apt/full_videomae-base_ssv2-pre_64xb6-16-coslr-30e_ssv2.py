"""Full fine-tuning of VideoMAE ViT-B, Something-Something V2 (the baseline of APT, arXiv 2403.06978).

    mmpetl fetch videomae-base-ssv2 ssv2
    python tools/prepare_ssv2.py data/ssv2
    bash tools/dist_train.sh configs/apt/full_videomae-base_ssv2-pre_64xb6-16-coslr-30e_ssv2.py 8

Trainable: 86,361,006 (everything).
Recipe: the published script of VideoMAE (64 GPUs; mixed precision by --amp).
Expected top-1 in %: published 70.8 (VideoMAE's list of models), measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/videomae-base_ssv2.py',
    '../_base_/recipes/videomae-full_ssv2.py'
]
model = dict(
    data_preprocessor=dict(blending=dict(type='RandomBatchAugment', augments=_base_.blends, probs=[0.5, 0.5])),
    backbone=dict(tune=['*'], trunk='train', drop_path_rate=0.1),
    cls_head=dict(num_classes=174, label_smooth_eps=0.1))
train_dataloader = dict(batch_size=6)
optim_wrapper = dict(optimizer=dict(lr=0.0005), paramwise_cfg=dict(decay_rate=0.75))
max_epochs = 30
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], T_max=max_epochs - 5, end=max_epochs),
]
