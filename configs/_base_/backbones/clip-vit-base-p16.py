"""CLIP's image tower ViT-B/16 with its projection (86,192,640 parameters) -> BatchNorm without parameters -> linear
head.

Weights:
    https://openaipublic.azureedge.net/clip/models/5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f/ViT-B-16.pt
(the long number is its SHA-256), put into ~/.cache/mmpetl/.
"""

checkpoint = '{{$MMPETL_CACHE:~/.cache/mmpetl}}/ViT-B-16.pt'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmpetl.CLIPVisionTransformer',
        arch='base',
        img_size=224,
        patch_size=16,
        petl=[],
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(type='mmpetl.CLIPProjection', in_channels=768, out_channels=512, checkpoint=checkpoint),
    head=dict(
        type='mmpetl.FeatureHead',
        num_classes=102,
        in_channels=512,
        feature_bn=True,
        loss=dict(type='CrossEntropyLoss')))
