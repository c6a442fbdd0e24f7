"""DINOv2 ViT-S/14 of transformers (22,056,576 parameters), self-supervised on LVD-142M; class token after the last norm
-> linear head.

Page: https://huggingface.co/facebook/dinov2-small
Weights: transformers fetches them from the hub by the name. Without a network: --cfg-options
    model.backbone.model_name=FOLDER, a folder that save_pretrained or a download of that page wrote.
``config`` says what the model is, for 'mmpetl plan'; a model that is another is refused.
Positions are resized to the picture in every pass.
"""

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
    backbone=dict(
        type='mmpetl.HF',
        model_name='facebook/dinov2-small',
        config=dict(
            model_type='dinov2', hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518,
            patch_size=14),
        petl=[]),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=384, loss=dict(type='CrossEntropyLoss')))
