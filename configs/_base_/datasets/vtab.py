"""VTAB-1k; any of its 19 tasks with --cfg-options task.name=svhn (mmpetl/datasets/tables/vtab.py lists them).

Data: the plain image release, <root>/cifar/{train800,val200,train800val200,test}.txt (or .json) and
    <root>/cifar/images/;
'mmpetl data check vtab --root <root>' looks at it. Images are squashed to 224 x 224 with Pillow's bicubic filter and
not augmented.
"""

task = dict(suite='vtab', name='cifar', root='data/vtab-1k', phase='final')
data_preprocessor = dict(
    type='ClsDataPreprocessor',
    num_classes=100,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)
pipeline = [
    dict(type='mmpetl.LoadImage'),
    dict(type='Resize', scale=(224, 224), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmpetl.CachedDataset',
        dataset=dict(
            type='mmpetl.VTAB1k', task='cifar', split='train800val200', data_root='data/vtab-1k', pipeline=pipeline)))
val_dataloader = dict(
    batch_size=128,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpetl.VTAB1k', task='cifar', split='test', data_root='data/vtab-1k', pipeline=pipeline, test_mode=True))
test_dataloader = val_dataloader
val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, ))
test_evaluator = val_evaluator
