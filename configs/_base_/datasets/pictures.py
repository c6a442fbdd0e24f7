"""What the data sets of pictures share: ImageNet's statistics of pixels, and how loaders draw.

The data set's own file says lists, classes, pipelines and batch sizes.
"""

data_preprocessor = dict(
    type='ClsDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_dataloader = dict(sampler=dict(type='DefaultSampler', shuffle=True))
val_dataloader = dict(sampler=dict(type='DefaultSampler', shuffle=False))
test_dataloader = val_dataloader
val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, ))
test_evaluator = val_evaluator
