"""VideoMAE ViT-S/16 on 16 frames, self-supervised on Something-Something V2 for 2400 epochs.

Weights: mmpetl fetch videomae-small-ssv2
"""

_base_ = './videomae-small.py'
model = dict(
    backbone=dict(
        init_cfg=dict(checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/videomae_vit-small_ssv2_2400e.pth')))
