"""Swin V2-T of transformers (27,578,154 parameters), supervised on ImageNet-1k at 256 px with windows of 8; mean over
the last tokens -> linear head.

Page: https://huggingface.co/microsoft/swinv2-tiny-patch4-window8-256
Weights: transformers fetches them from the hub by the name. Without a network: --cfg-options
    model.backbone.model_name=FOLDER, a folder that save_pretrained or a download of that page wrote.
``config`` says what the model is, for 'mmpetl plan'; a model that is another is refused.
"""

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    backbone=dict(
        type='mmpetl.HF',
        model_name='microsoft/swinv2-tiny-patch4-window8-256',
        config=dict(
            model_type='swinv2', embed_dim=96, depths=[2, 2, 6, 2], num_heads=[3, 6, 12, 24], window_size=8,
            image_size=256),
        petl=[]),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=768, loss=dict(type='CrossEntropyLoss')))
