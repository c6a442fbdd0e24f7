"""TimeSformer-B of transformers (121,258,752 parameters) on 8 frames, divided attention, supervised on ImageNet-21k and
Kinetics-400; class token -> linear head.

Page: https://huggingface.co/facebook/timesformer-base-finetuned-k400
Weights: transformers fetches them from the hub by the name. Without a network: --cfg-options
    model.backbone.model_name=FOLDER, a folder that save_pretrained or a download of that page wrote.
``config`` says what the model is, for 'mmpetl plan'; a model that is another is refused.
"""

model = dict(
    type='Recognizer3D',
    data_preprocessor=dict(
        type='ActionDataPreprocessor', mean=[114.75, 114.75, 114.75], std=[57.375, 57.375, 57.375],
        format_shape='NCTHW'),
    backbone=dict(
        type='mmpetl.HF',
        model_name='facebook/timesformer-base-finetuned-k400',
        config=dict(
            model_type='timesformer', hidden_size=768, num_hidden_layers=12, num_attention_heads=12, num_frames=8),
        petl=[]),
    cls_head=dict(type='mmpetl.VideoMAEHead', num_classes=51, in_channels=768, average_clips='prob', keep_views=True))
