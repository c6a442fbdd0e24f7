"""DINOv3 ViT-S/16 of transformers (21,596,544 parameters), distilled on LVD-1689M; class token after the last norm ->
linear head.

Page: https://huggingface.co/facebook/dinov3-vits16-pretrain-lvd1689m, which asks for consent to its licence first
Weights: transformers fetches them from the hub by the name. Without a network: --cfg-options
    model.backbone.model_name=FOLDER, a folder that save_pretrained or a download of that page wrote.
``config`` says what the model is, for 'mmpetl plan'; a model that is another is refused.
"""

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    backbone=dict(
        type='mmpetl.HF',
        model_name='facebook/dinov3-vits16-pretrain-lvd1689m',
        config=dict(
            model_type='dinov3_vit', hidden_size=384, num_hidden_layers=12, num_attention_heads=6, patch_size=16,
            num_register_tokens=4),
        petl=[]),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=384, loss=dict(type='CrossEntropyLoss')))
