"""V-JEPA 2 ViT-L/16 of transformers (325,971,328 parameters, its predictor included, which never runs here); mean over
all tokens -> linear head.

Page: https://huggingface.co/facebook/vjepa2-vitl-fpc64-256
Weights: transformers fetches them from the hub by the name. Without a network: --cfg-options
    model.backbone.model_name=FOLDER, a folder that save_pretrained or a download of that page wrote.
``config`` says what the model is, for 'mmpetl plan'; a model that is another is refused.
Trained on 64 frames of 256 px; positions are rotations, and here it reads 16 frames of 224 px.
"""

model = dict(
    type='Recognizer3D',
    data_preprocessor=dict(
        type='ActionDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
        format_shape='NCTHW'),
    backbone=dict(
        type='mmpetl.HF',
        model_name='facebook/vjepa2-vitl-fpc64-256',
        config=dict(
            model_type='vjepa2', hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, patch_size=16,
            tubelet_size=2),
        crop_size=224,
        frames_per_clip=16,
        petl=[]),
    cls_head=dict(type='mmpetl.VideoMAEHead', num_classes=51, in_channels=1024, average_clips='prob', keep_views=True))
