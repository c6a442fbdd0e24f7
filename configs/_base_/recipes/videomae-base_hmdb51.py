"""VideoMAE ViT-B, HMDB51 as APT reads it."""

_base_ = ['../default_runtime_video.py', '../backbones/videomae-base.py', '../datasets/hmdb51_16x4.py']
