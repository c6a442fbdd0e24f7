"""VideoMAE ViT-B, Something-Something V2 as APT reads it."""

_base_ = ['../default_runtime_video.py', '../backbones/videomae-base_ssv2.py', '../datasets/ssv2_16.py']
