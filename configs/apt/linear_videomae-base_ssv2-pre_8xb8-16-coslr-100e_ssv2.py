"""Linear probe on VideoMAE ViT-B, Something-Something V2 (APT, arXiv 2403.06978).

    python tools/prepare_ssv2.py data/ssv2
    bash tools/dist_train.sh configs/apt/linear_videomae-base_ssv2-pre_8xb8-16-coslr-100e_ssv2.py 8

Trainable: 135,342 (norm and head).
The published linear probe (UCF101, ViT-B) has 0.01 for 256 videos.
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/videomae-base.py', '../_base_/datasets/ssv2_16.py',
    '../_base_/schedules/apt_adamw_100e.py'
]
model = dict(
    backbone=dict(init_cfg=dict(checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/videomae_vit-base_ssv2_2400e.pth')),
    cls_head=dict(num_classes=174, label_smooth_eps=0.1))
optim_wrapper = dict(optimizer=dict(lr=0.01))
