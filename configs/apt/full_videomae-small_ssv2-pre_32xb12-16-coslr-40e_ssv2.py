"""Full fine-tuning of VideoMAE ViT-S, Something-Something V2 (the baseline of APT, arXiv 2403.06978).

    mmpetl fetch videomae-small-ssv2 ssv2
    python tools/prepare_ssv2.py data/ssv2
    bash tools/dist_train.sh configs/apt/full_videomae-small_ssv2-pre_32xb12-16-coslr-40e_ssv2.py 8

Trainable: 21,946,926 (everything).
Recipe: the published script of VideoMAE (32 GPUs; mixed precision by --amp).
Expected top-1 in %: published 66.8 (VideoMAE's list of models), measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/videomae-small_ssv2.py',
    '../_base_/recipes/videomae-full_ssv2.py'
]
model = dict(
    data_preprocessor=dict(blending=dict(type='RandomBatchAugment', augments=_base_.blends, probs=[0.5, 0.5])),
    backbone=dict(tune=['*'], trunk='train', drop_path_rate=0.1),
    cls_head=dict(num_classes=174, label_smooth_eps=0.1))
train_dataloader = dict(batch_size=12)
optim_wrapper = dict(optimizer=dict(lr=0.001), paramwise_cfg=dict(decay_rate=0.7))
max_epochs = 40
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], T_max=max_epochs - 5, end=max_epochs, eta_min_ratio=1e-3),
]
