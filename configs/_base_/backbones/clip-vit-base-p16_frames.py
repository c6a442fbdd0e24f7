"""CLIP's image tower ViT-B/16 over the 16 frames of a clip, without its projection; mean over frames -> linear head.

Weights: mmpetl fetch clip-vit-base-p16
"""

model = dict(
    type='Recognizer3D',
    data_preprocessor=dict(
        type='ActionDataPreprocessor',
        mean=[122.771, 116.746, 104.094],
        std=[68.5, 66.632, 70.323],
        format_shape='NCTHW'),
    backbone=dict(
        type='mmpetl.CLIPVisionTransformer',
        arch='base',
        img_size=224,
        patch_size=16,
        frames=16,
        petl=[],
        init_cfg=dict(type='Pretrained', checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/ViT-B-16.pt')),
    cls_head=dict(type='mmpetl.VideoMAEHead', num_classes=101, in_channels=768, average_clips='prob', keep_views=True))
