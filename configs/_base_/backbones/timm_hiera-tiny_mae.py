"""Hiera-T of timm (27,141,216 parameters), MAE on ImageNet-1k; mean of the last tokens -> linear head.

Page: https://huggingface.co/timm/hiera_tiny_224.mae
Weights: timm fetches them from its hub by the name. Without a network: --cfg-options
    model.backbone.pretrained=False model.backbone.checkpoint_path=FILE, with the model.safetensors of that page.
"""

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    backbone=dict(
        type='mmpetl.TIMM',
        model_name='hiera_tiny_224.mae',
        pretrained=True,
        petl=[]),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=768, loss=dict(type='CrossEntropyLoss')))
