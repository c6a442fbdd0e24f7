"""EVA-02 ViT-S/14 (21,625,728 parameters), self-supervised on ImageNet-21k; mean of the patch tokens, norm ->
linear head.

Weights: mmpetl fetch eva02-small-in21k
It reads pictures that are normalised as CLIP's. Where the file has no norm behind the mean, that norm begins at
identity.
"""

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[122.771, 116.746, 104.094],
        std=[68.501, 66.632, 70.323],
        to_rgb=True),
    backbone=dict(
        type='mmpetl.ViTEVA02',
        arch='small',
        img_size=224,
        patch_size=14,
        final_norm=False,
        out_type='avg_featmap',
        petl=[],
        init_cfg=dict(
            type='Pretrained',
            checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/eva02-small-p14_pre_in21k_20230505-3175f463.pth')),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=384, loss=dict(type='CrossEntropyLoss')))
