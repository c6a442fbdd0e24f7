"""SigLIP 2 ViT-B/16 of timm (92,884,224 parameters), trained with texts on WebLI; attention pooling -> linear head.

Page: https://huggingface.co/timm/vit_base_patch16_siglip_224.v2_webli
Weights: timm fetches them from its hub by the name. Without a network: --cfg-options
    model.backbone.pretrained=False model.backbone.checkpoint_path=FILE, with the model.safetensors of that page.
It reads pictures between -1 and 1.
"""

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True),
    backbone=dict(
        type='mmpetl.TIMM',
        model_name='vit_base_patch16_siglip_224.v2_webli',
        pretrained=True,
        petl=[]),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=768, loss=dict(type='CrossEntropyLoss')))
