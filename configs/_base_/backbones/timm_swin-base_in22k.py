"""Swin-B of timm (86,743,224 parameters), supervised on ImageNet-22k; mean over the last feature map -> linear head.

Page: https://huggingface.co/timm/swin_base_patch4_window7_224.ms_in22k
Weights: timm fetches them from its hub by the name. Without a network: --cfg-options
    model.backbone.pretrained=False model.backbone.checkpoint_path=FILE, with the model.safetensors of that page.
"""

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    backbone=dict(
        type='mmpetl.TIMM',
        model_name='swin_base_patch4_window7_224.ms_in22k',
        pretrained=True,
        petl=[]),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=1024, loss=dict(type='CrossEntropyLoss')))
