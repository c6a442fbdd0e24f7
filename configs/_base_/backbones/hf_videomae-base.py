"""VideoMAE ViT-B/16 of transformers (86,225,664 parameters) on 16 frames, self-supervised on Kinetics-400; mean over
all tokens -> linear head.

Page: https://huggingface.co/MCG-NJU/videomae-base
Weights: transformers fetches them from the hub by the name. Without a network: --cfg-options
    model.backbone.model_name=FOLDER, a folder that save_pretrained or a download of that page wrote.
``config`` says what the model is, for 'mmpetl plan'; a model that is another is refused.
"""

model = dict(
    type='Recognizer3D',
    data_preprocessor=dict(
        type='ActionDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375],
        format_shape='NCTHW'),
    backbone=dict(
        type='mmpetl.HF',
        model_name='MCG-NJU/videomae-base',
        config=dict(
            model_type='videomae', hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_frames=16,
            tubelet_size=2),
        petl=[]),
    cls_head=dict(type='mmpetl.VideoMAEHead', num_classes=51, in_channels=768, average_clips='prob', keep_views=True))
