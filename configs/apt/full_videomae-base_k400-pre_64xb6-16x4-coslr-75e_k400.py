"""Full fine-tuning of VideoMAE ViT-B, Kinetics-400 (the baseline of APT, arXiv 2403.06978).

    mmpetl fetch videomae-base-k400 k400
    python tools/prepare_k400.py data/k400
    bash tools/dist_train.sh configs/apt/full_videomae-base_k400-pre_64xb6-16x4-coslr-75e_k400.py 8

Trainable: 86,534,800 (everything).
Recipe: the published script of VideoMAE (64 GPUs; mixed precision by --amp).
Expected top-1 in %: published 81.5 (VideoMAE's list of models), measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/videomae-base.py',
    '../_base_/recipes/videomae-full_k400.py'
]
model = dict(
    data_preprocessor=dict(blending=dict(type='RandomBatchAugment', augments=_base_.blends, probs=[0.5, 0.5])),
    backbone=dict(tune=['*'], trunk='train', drop_path_rate=0.1),
    cls_head=dict(num_classes=400, label_smooth_eps=0.1))
train_dataloader = dict(batch_size=6)
max_epochs = 75
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], T_max=max_epochs - 5, end=max_epochs),
]
