"""ELEVATER's 20 data sets with the normalisation of backbones that are not CLIP's, and their head: BatchNorm without
parameters -> linear.

"""

_base_ = './elevater.py'
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
elevater_head = dict(
    _delete_=True,
    type='mmpetl.FeatureHead',
    num_classes=102,
    in_channels=768,
    feature_bn=True,
    loss=dict(type='CrossEntropyLoss'))
