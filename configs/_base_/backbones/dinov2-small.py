"""DINOv2 ViT-S/14 (22,056,192 parameters), class token after the last norm -> linear head.

Weights: python tools/fetch_data.py dinov2-vits14
The position grid of pre-training (37 x 37) is resized to the input when the weights are loaded.
"""

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    backbone=dict(
        type='mmpetl.VisionTransformer',
        arch='dinov2-s',
        img_size=224,
        patch_size=14,
        layer_scale_init_value=1e-5,
        petl=[],
        init_cfg=dict(type='Pretrained', checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/dinov2_vits14.safetensors')),
    head=dict(type='LinearClsHead', in_channels=384, loss=dict(type='CrossEntropyLoss')))
