"""VideoMAE ViT-L/16 on 16 frames, self-supervised on Kinetics-400 for 1600 epochs; otherwise as ViT-B.

Weights: mmpetl fetch videomae-large-k400
"""

_base_ = './videomae-base.py'
model = dict(
    backbone=dict(
        embed_dims=1024, depth=24,
        num_heads=16,
        init_cfg=dict(checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/videomae_vit-large_k400_1600e.pth')),
    cls_head=dict(in_channels=1024))
