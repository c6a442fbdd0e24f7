"""MViT v2-S for videos (34,230,144 parameters), supervised on Kinetics-400; class token -> linear head.

Weights: mmpetl fetch video-mvitv2-small-k400
"""

model = dict(
    type='Recognizer3D',
    data_preprocessor=dict(
        type='ActionDataPreprocessor', mean=[114.75, 114.75, 114.75], std=[57.375, 57.375, 57.375],
        format_shape='NCTHW'),
    backbone=dict(
        type='mmpetl.VideoMViT',
        arch='small',
        drop_path_rate=0.,
        petl=[],
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/mvit-small-p244_16x4x1_kinetics400-rgb_'
            '20221021-9ebaaeed.pth')),
    cls_head=dict(type='MViTHead', num_classes=51, in_channels=768, average_clips='prob', dropout_ratio=0.))
