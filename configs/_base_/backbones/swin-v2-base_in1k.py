"""Swin V2-B (86,893,816 parameters), supervised on ImageNet-1k at 256 px with windows of 8; mean over the last feature
map -> linear head.

Weights: mmpetl fetch swin-v2-base
Here it reads 224 px with windows of 7: biases of places come from a network over distances, in units of the windows of
pre-training.
"""

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmpetl.SwinTransformerV2',
        arch='base',
        img_size=224,
        window_size=7,
        pretrained_window_sizes=[8, 8, 8, 8],
        drop_path_rate=0.,
        petl=[],
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/swinv2-base-w8_3rdparty_in1k-256px_20220803-8ff28f2b.pth')),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=1024, loss=dict(type='CrossEntropyLoss')))
