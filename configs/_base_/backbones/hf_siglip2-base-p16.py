"""SigLIP 2 ViT-B/16 of transformers (92,884,224 parameters), trained with texts on WebLI; attention pooling -> linear
head.

Page: https://huggingface.co/google/siglip2-base-patch16-224
Weights: transformers fetches them from the hub by the name. Without a network: --cfg-options
    model.backbone.model_name=FOLDER, a folder that save_pretrained or a download of that page wrote.
``config`` says what the model is, for 'mmpetl plan'; a model that is another is refused.
It reads pictures between -1 and 1.
"""

model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor', mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True),
    backbone=dict(
        type='mmpetl.HF',
        model_name='google/siglip2-base-patch16-224',
        config=dict(
            model_type='siglip_vision_model', hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
            image_size=224, patch_size=16),
        petl=[]),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=768, loss=dict(type='CrossEntropyLoss')))
