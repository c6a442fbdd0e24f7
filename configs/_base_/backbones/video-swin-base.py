"""Video Swin-B (87,638,984 parameters), supervised on ImageNet-22k and Kinetics-400; averages of its last feature
map -> linear head.

Weights: mmpetl fetch video-swin-base
V-PETL's README names weights of Kinetics-600 beside them: mmpetl fetch video-swin-base-k600, then --cfg-options
    model.backbone.init_cfg.checkpoint=$HOME/.cache/mmpetl/swin_base_patch244_window877_kinetics600_22k.pth
As V-PETL has it, drop-path stays on in the frozen base (trunk='train'). Logits of the test views are averaged.
"""

model = dict(
    type='Recognizer3D',
    data_preprocessor=dict(
        type='ActionDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        format_shape='NCTHW'),
    backbone=dict(
        type='mmpetl.SwinTransformer3D',
        arch='base',
        patch_size=(2, 4, 4),
        window_size=(8, 7, 7),
        drop_path_rate=0.4,
        petl=[],
        tune=[],
        trunk='train',
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/swin_base_patch244_window877_kinetics400_22k.pth')),
    cls_head=dict(
        type='mmpetl.VideoSwinHead',
        num_classes=51,
        in_channels=1024,
        temporal_pool='pair',
        average_clips='score',
        keep_views=True))
