"""VideoMAE ViT-S, HMDB51 as APT reads it."""

_base_ = ['../default_runtime_video.py', '../backbones/videomae-small.py', '../datasets/hmdb51_16x4.py']
