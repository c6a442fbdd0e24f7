"""VideoMAE ViT-B/16 on 16 frames, self-supervised on Kinetics-400 for 1600 epochs; mean over all tokens, norm ->
linear head.

Weights: mmpetl fetch videomae-base-k400
The fine-tuned files are not what APT starts from. The norm after the mean is new and trains with the head, as
published.
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
        img_size=224,
        patch_size=16,
        embed_dims=768,
        depth=12,
        num_heads=12,
        mlp_ratio=4,
        qkv_bias=True,
        num_frames=16,
        norm_cfg=dict(type='LN', eps=1e-6),
        petl=[],
        tune=['fc_norm.*'],
        init_cfg=dict(
            type='Pretrained', checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/videomae_vit-base_k400_1600e.pth')),
    cls_head=dict(type='mmpetl.VideoMAEHead', num_classes=101, in_channels=768, average_clips='prob', keep_views=True))
