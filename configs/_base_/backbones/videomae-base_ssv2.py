"""VideoMAE ViT-B/16 on 16 frames, self-supervised on Something-Something V2 for 2400 epochs.

Weights: mmpetl fetch videomae-base-ssv2
"""

_base_ = './videomae-base.py'
model = dict(
    backbone=dict(
        init_cfg=dict(checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/videomae_vit-base_ssv2_2400e.pth')))
