"""ViT-B/16 (85,798,656 parameters), supervised on ImageNet-21k; class token after the last norm -> linear head.

Weights: mmpetl fetch vit-base-in21k
"""

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmpetl.VisionTransformer',
        arch='base',
        img_size=224,
        patch_size=16,
        norm_cfg=dict(type='LN', eps=1e-6),
        petl=[],
        init_cfg=dict(type='Pretrained', checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/ViT-B_16.npz')),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=768, loss=dict(type='CrossEntropyLoss')))
