"""DINOv2 ViT-S/14 inflated to a VideoMAE ViT on 8 frames of 70 px (4 x 5 x 5 tokens); mean over all tokens, norm ->
linear head.

Weights: python tools/prepare_motion_clips.py. The image model knows no time, so a fixed code of time is added to its
    positions; without it
(videomae_dinov2s_untimed.safetensors) the output does not depend on the order of the frame pairs.
"""

model = dict(
    type='Recognizer3D',
    data_preprocessor=dict(
        type='ActionDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        format_shape='NCTHW'),
    backbone=dict(
        type='mmpetl.VideoMAE',
        img_size=70,
        patch_size=14,
        embed_dims=384,
        depth=12,
        num_heads=6,
        mlp_ratio=4,
        qkv_bias=True,
        num_frames=8,
        tubelet_size=2,
        init_values=1e-5,  # DINOv2's layer scale, loaded with the weights
        norm_cfg=dict(type='LN', eps=1e-6),
        petl=[],
        tune=['fc_norm.*'],
        init_cfg=dict(type='Pretrained', checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/videomae_dinov2s.safetensors')),
    cls_head=dict(
        type='mmpetl.VideoMAEHead',
        num_classes=6,
        in_channels=384,
        init_scale=1.,
        average_clips='prob',
        keep_views=True))
