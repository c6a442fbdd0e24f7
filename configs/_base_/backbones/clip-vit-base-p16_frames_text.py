"""CLIP's image tower ViT-B/16 over the 16 frames of a clip, its projection, and a head whose classes are texts.

Weights: mmpetl fetch clip-vit-base-p16
Text features: python tools/text_features.py clip-vit-base-p16 --videos hmdb51
"""

_base_ = './clip-vit-base-p16_frames.py'
cache = '{{$MMPETL_CACHE:~/.cache/mmpetl}}'
model = dict(
    cls_head=dict(
        _delete_=True,
        type='mmpetl.VideoTextHead',
        num_classes=51,
        in_channels=768,
        projection=dict(out_channels=512, checkpoint=cache + '/ViT-B-16.pt'),
        text_features=cache + '/text_features/openai-vit-b-16/hmdb51.npz',
        average_clips='prob',
        keep_views=True))
