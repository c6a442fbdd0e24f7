"""VideoMAE ViT-S, UCF101 as APT reads it."""

_base_ = ['../default_runtime_video.py', '../backbones/videomae-small.py', '../datasets/ucf101_16x4.py']
