"""VideoMAE ViT-B, UCF101 as APT reads it."""

_base_ = ['../default_runtime_video.py', '../backbones/videomae-base.py', '../datasets/ucf101_16x4.py']
