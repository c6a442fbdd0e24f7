"""Full fine-tuning of VideoMAE ViT-B, UCF101, split 1 (the baseline of APT, arXiv 2403.06978).

    mmpetl fetch videomae-base-k400 ucf101
    python tools/prepare_ucf101.py data/ucf101
    bash tools/dist_train.sh configs/apt/full_videomae-base_k400-pre_8xb16-16x4-coslr-100e_ucf101.py 8

Trainable: 86,304,869 (everything).
Recipe: the published script of VideoMAE (8 GPUs; mixed precision by --amp), which starts from weights of UCF101 itself;
the published number is that of these weights.
Expected top-1 in %: published 96.1 (VideoMAE's list of models), measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/videomae-base.py',
    '../_base_/recipes/videomae-full_ucf101.py'
]
model = dict(
    data_preprocessor=dict(blending=dict(type='RandomBatchAugment', augments=_base_.blends, probs=[0.5, 0.5])),
    backbone=dict(tune=['*'], trunk='train', drop_path_rate=0.2),
    cls_head=dict(num_classes=101, label_smooth_eps=0.1, dropout_ratio=0.5))
