"""ViT-B/16 (85,798,656 parameters), MoCo v3 on ImageNet-1k; class token after the last norm -> linear head.

Weights: https://dl.fbaipublicfiles.com/moco-v3/vit-b-300ep/linear-vit-b-300ep.pth.tar (md5 begins 8f39ce), put into
    ~/.cache/mmpetl/.
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
        init_cfg=dict(type='Pretrained', checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/linear-vit-b-300ep.pth.tar')),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=768, loss=dict(type='CrossEntropyLoss')))
