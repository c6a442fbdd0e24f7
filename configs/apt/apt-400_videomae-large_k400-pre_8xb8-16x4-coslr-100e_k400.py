"""APT with 400 tokens per block on VideoMAE ViT-L, Kinetics-400 (APT, arXiv 2403.06978).

    mmpetl fetch videomae-large-k400 k400
    python tools/prepare_k400.py data/k400
    bash tools/dist_train.sh configs/apt/apt-400_videomae-large_k400-pre_8xb8-16x4-coslr-100e_k400.py 8

Trainable: 1,660,048 (1,248,000 + 412,048 in norm and head).
No script for this size is published; these are the settings of ViT-B, with prompts in all blocks (the published command
line, without its flags, would stop at block 11).
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/videomae-large.py', '../_base_/datasets/k400_16x4.py',
    '../_base_/schedules/apt_adamw_100e.py'
]
model = dict(
    backbone=dict(petl=[dict(type='APT', num_tokens=400, drop_rate=0.1, reparam='max')]),
    cls_head=dict(num_classes=400, label_smooth_eps=0.1))
