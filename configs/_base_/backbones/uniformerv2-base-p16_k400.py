"""UniFormer V2-B/16 (114,244,608 parameters) on 8 frames, CLIP's image tower with blocks over time, trained on
Kinetics-400; its video token -> linear head.

Weights: mmpetl fetch uniformerv2-base-k400
"""

model = dict(
    type='Recognizer3D',
    data_preprocessor=dict(
        type='ActionDataPreprocessor', mean=[114.75, 114.75, 114.75], std=[57.375, 57.375, 57.375],
        format_shape='NCTHW'),
    backbone=dict(
        type='mmpetl.UniFormerV2',
        input_resolution=224,
        patch_size=16,
        width=768,
        layers=12,
        heads=12,
        t_size=8,
        no_lmhra=True,
        double_lmhra=True,
        mlp_dropout=[0., 0., 0., 0.],
        clip_pretrained=False,
        petl=[],
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/uniformerv2-base-p16-res224_clip_8xb32-u8_kinetics400-rgb_'
            '20230313-e29fc968.pth')),
    cls_head=dict(type='mmpetl.VideoMAEHead', num_classes=51, in_channels=768, average_clips='prob', keep_views=True))
