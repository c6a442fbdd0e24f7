"""ELEVATER's 20 data sets, 5 images per class; --cfg-options task.name=dtd task.shots=20 task.shot_seed=1 (shots=-1 for
all images).

Data: the benchmark's downloads, <root>/classification/<folder>/, images in their zip files or unpacked;
'mmpetl data check elevater --root <root>' looks at it. Short edge 224 with Pillow's bicubic filter, centre crop, no
augmentation.
"""

_base_ = './pictures.py'
task = dict(suite='elevater', name='caltech-101', root='data/elevater', phase='final', shots=5, shot_seed=0)
data_preprocessor = dict(
    num_classes=102, mean=[122.7709383, 116.7460125, 104.09373615], std=[68.5005327, 66.6321579, 70.32316305])
pipeline = [
    dict(type='mmpetl.LoadImage'),
    dict(type='ResizeEdge', scale=224, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=64,
    num_workers=2,
    dataset=dict(
        type='mmpetl.CachedDataset',
        dataset=dict(
            type='mmpetl.Elevater',
            task='caltech-101',
            split='few',
            shots=5,
            shot_seed=0,
            data_root='data/elevater',
            pipeline=pipeline)))
val_dataloader = dict(
    batch_size=64,
    num_workers=2,
    dataset=dict(
        type='mmpetl.Elevater',
        task='caltech-101',
        split='test',
        data_root='data/elevater',
        pipeline=pipeline,
        test_mode=True))
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='mmpetl.MeanPerClass')
test_evaluator = val_evaluator
