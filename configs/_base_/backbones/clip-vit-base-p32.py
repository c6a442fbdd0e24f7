"""CLIP's image tower ViT-B/32 with its projection (87,849,216 parameters) -> BatchNorm without parameters -> linear
head.

Weights:
    https://openaipublic.azureedge.net/clip/models/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt
(the long number is its SHA-256), put into ~/.cache/mmpetl/.
"""

checkpoint = '{{$MMPETL_CACHE:~/.cache/mmpetl}}/ViT-B-32.pt'
model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmpetl.CLIPVisionTransformer',
        arch='base',
        img_size=224,
        patch_size=32,
        petl=[],
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint)),
    neck=dict(type='mmpetl.CLIPProjection', in_channels=768, out_channels=512, checkpoint=checkpoint),
    head=dict(
        type='mmpetl.FeatureHead',
        num_classes=102,
        in_channels=512,
        feature_bn=True,
        loss=dict(type='CrossEntropyLoss')))
