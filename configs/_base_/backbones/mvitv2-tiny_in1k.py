"""MViT v2-T (23,404,320 parameters), supervised on ImageNet-1k; mean over the last feature map -> linear head.

Weights: mmpetl fetch mvitv2-tiny
"""

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmpetl.MViT',
        arch='tiny',
        img_size=224,
        drop_path_rate=0.,
        petl=[],
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/mvitv2-tiny_3rdparty_in1k_20220722-db7beeef.pth')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=768, loss=dict(type='CrossEntropyLoss')))
