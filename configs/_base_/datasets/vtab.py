"""VTAB-1k; any of its 19 tasks with --cfg-options task.name=svhn (mmpetl/datasets/tables/vtab.py lists them).

Data: the plain image release, <root>/cifar/{train800,val200,train800val200,test}.txt (or .json) and
    <root>/cifar/images/;
'mmpetl data check vtab --root <root>' looks at it. Images are squashed to 224 x 224 with Pillow's bicubic filter and
not augmented.
"""

_base_ = './pictures.py'
task = dict(suite='vtab', name='cifar', root='data/vtab-1k', phase='final')
data_preprocessor = dict(num_classes=100)
pipeline = [
    dict(type='mmpetl.LoadImage'),
    dict(type='Resize', scale=(224, 224), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    dataset=dict(
        type='mmpetl.CachedDataset',
        dataset=dict(
            type='mmpetl.VTAB1k', task='cifar', split='train800val200', data_root='data/vtab-1k', pipeline=pipeline)))
val_dataloader = dict(
    batch_size=128,
    num_workers=2,
    dataset=dict(
        type='mmpetl.VTAB1k', task='cifar', split='test', data_root='data/vtab-1k', pipeline=pipeline, test_mode=True))
test_dataloader = val_dataloader
