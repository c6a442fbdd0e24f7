"""Full fine-tuning of VideoMAE ViT-S, HMDB51, split 1 (the baseline of APT, arXiv 2403.06978).

    mmpetl fetch videomae-small-k400 hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    bash tools/dist_train.sh configs/apt/full_videomae-small_k400-pre_8xb16-16x4-coslr-100e_hmdb51.py 8

Trainable: 21,899,571 (everything).
No script for this backbone and data set is published; these are the settings of ViT-B on UCF101.
Expected top-1: published unknown, measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/videomae-small.py',
    '../_base_/recipes/videomae-full_hmdb51.py'
]
model = dict(
    data_preprocessor=dict(blending=dict(type='RandomBatchAugment', augments=_base_.blends, probs=[0.5, 0.5])),
    backbone=dict(tune=['*'], trunk='train', drop_path_rate=0.2),
    cls_head=dict(num_classes=51, label_smooth_eps=0.1, dropout_ratio=0.5))
