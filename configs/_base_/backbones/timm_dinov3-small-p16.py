"""DINOv3 ViT-S/16 of timm (21,586,944 parameters), distilled on LVD-1689M; mean of the patch tokens -> linear head.

Page: https://huggingface.co/timm/vit_small_patch16_dinov3.lvd1689m
Weights: timm fetches them from its hub by the name. Without a network: --cfg-options
    model.backbone.pretrained=False model.backbone.checkpoint_path=FILE, with the model.safetensors of that page.
"""

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    backbone=dict(
        type='mmpetl.TIMM',
        model_name='vit_small_patch16_dinov3.lvd1689m',
        pretrained=True,
        img_size=224,
        petl=[]),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=384, loss=dict(type='CrossEntropyLoss')))
