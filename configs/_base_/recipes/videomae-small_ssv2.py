"""VideoMAE ViT-S, Something-Something V2 as APT reads it."""

_base_ = ['../default_runtime_video.py', '../backbones/videomae-small_ssv2.py', '../datasets/ssv2_16.py']
