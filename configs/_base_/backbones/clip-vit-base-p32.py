"""CLIP's image tower ViT-B/32 with its projection (87,849,216 parameters) -> BatchNorm without parameters -> linear
head that starts from the text features of the classes, as in ELEVATER's published scripts.

Weights: mmpetl fetch clip-vit-base-p32
Text features: mmpetl fetch elevater-prompts, then python tools/text_features.py clip-vit-base-p32 --suite elevater
"""

cache = '{{$MMPETL_CACHE:~/.cache/mmpetl}}'
checkpoint = cache + '/ViT-B-32.pt'
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
        text_features=cache + '/text_features/openai-vit-b-32/{task}.npz',
        loss=dict(type='CrossEntropyLoss')))
