"""DeiT III ViT-S/16 (21,674,496 parameters), supervised on ImageNet-1k; class token after the last norm -> linear head.

Weights: mmpetl fetch deit3-small
mmpretrain 1.2.0's class norms the input of the feed-forward network by ln1 and never reads ln2, which the weights were
trained with; it is followed here. For the features of the authors take the same weights by timm: type='mmpetl.TIMM',
model_name='deit3_small_patch16_224.fb_in1k', pretrained=True.
"""

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmpetl.DeiT3',
        arch='small',
        img_size=224,
        patch_size=16,
        petl=[],
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/deit3-small-p16_3rdparty_in1k_20221008-0f7c70cf.pth')),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=384, loss=dict(type='CrossEntropyLoss')))
