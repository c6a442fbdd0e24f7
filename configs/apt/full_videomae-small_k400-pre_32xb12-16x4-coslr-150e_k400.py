"""Full fine-tuning of VideoMAE ViT-S, Kinetics-400 (the baseline of APT, arXiv 2403.06978).

    mmpetl fetch videomae-small-k400 k400
    python tools/prepare_k400.py data/k400
    bash tools/dist_train.sh configs/apt/full_videomae-small_k400-pre_32xb12-16x4-coslr-150e_k400.py 8

Trainable: 22,033,936 (everything).
Recipe: the published script of VideoMAE (32 GPUs; mixed precision by --amp).
Expected top-1 in %: published 79.0 (VideoMAE's list of models), measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/videomae-small.py',
    '../_base_/recipes/videomae-full_k400.py'
]
model = dict(
    data_preprocessor=dict(blending=dict(type='RandomBatchAugment', augments=_base_.blends, probs=[0.5, 0.5])),
    backbone=dict(tune=['*'], trunk='train', drop_path_rate=0.1),
    cls_head=dict(num_classes=400, label_smooth_eps=0.1))
train_dataloader = dict(batch_size=12)
max_epochs = 150
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    _base_.param_scheduler[0],
    dict(_base_.param_scheduler[1], T_max=max_epochs - 5, end=max_epochs),
]
