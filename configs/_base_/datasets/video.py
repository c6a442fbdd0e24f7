"""What all action data sets share: loaders, and how a clip is opened, resized for testing and packed.

The data set's own file says lists, classes, sampling and augmentation.
"""

data = dict(type='mmpetl.VideoListDataset', data_root='data/hmdb51/', num_classes=51, on_error='stop')
init, decode = dict(type='mmpetl.VideoInit'), dict(type='mmpetl.VideoDecode')
squash = dict(type='Resize', scale=(224, 224), keep_ratio=False)
pack = [dict(type='FormatShape', input_format='NCTHW'), dict(type='PackActionInputs')]
view = [
    dict(type='mmpetl.ShortSideResize', size=224),
    dict(type='mmpetl.ViewCrops', crop_size=224, num_crops=1),
    *pack,
]
views = [
    view[0],
    dict(type='mmpetl.ViewCrops', crop_size=224, num_crops=3),
    pack[0],
    dict(type='PackActionInputs', meta_keys=('filename', )),
]
workers = dict(num_workers=8, persistent_workers=True)
train_dataloader = dict(
    batch_size=8,
    sampler=dict(type='DefaultSampler', shuffle=True),
    drop_last=True,
    dataset=dict(ann_file='split1/train.csv', **data),
    **workers)
val_dataloader = dict(
    batch_size=8,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='split1/val.csv', test_mode=True, **data),
    **workers)
test_dataloader = dict(
    batch_size=1,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(ann_file='split1/test.csv', test_mode=True, **data),
    **workers)
val_evaluator = dict(type='AccMetric')
test_evaluator = val_evaluator
