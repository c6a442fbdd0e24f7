"""BEiT v2 ViT-B/16 (85,761,984 parameters), self-supervised, fine-tuned on ImageNet-21k, then on ImageNet-1k; mean of
the patch tokens, norm -> linear head.

Weights: mmpetl fetch beitv2-base
"""

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmpetl.BEiTViT',
        arch='base',
        img_size=224,
        patch_size=16,
        petl=[],
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/beitv2-base_3rdparty_in1k_20221114-73e11905.pth')),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=768, loss=dict(type='CrossEntropyLoss')))
