"""Swin-B (86,743,224 parameters), supervised on ImageNet-22k; mean over the last feature map -> linear head.

Weights: mmpetl fetch swin-base-in22k
"""

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmpetl.SwinTransformer',
        arch='base',
        img_size=224,
        drop_path_rate=0.,
        petl=[],
        init_cfg=dict(
            type='Pretrained', checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/swin_base_patch4_window7_224_22k.pth')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=1024, loss=dict(type='CrossEntropyLoss')))
