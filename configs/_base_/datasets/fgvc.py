"""FGVC; any of CUB, nabirds, OxfordFlowers, StanfordDogs, StanfordCars with --cfg-options task.name=nabirds.

Data: VPT's json splits beside the images, <root>/CUB/{train,val,test}.json and <root>/CUB/images/;
'mmpetl data check fgvc --root <root>' looks at it. VPT's augmentation: short edge 256, random 224 crop and flip; centre
crop for testing.
"""

task = dict(suite='fgvc', name='CUB', root='data/fgvc', phase='final')
data_preprocessor = dict(
    type='ClsDataPreprocessor',
    num_classes=200,
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    to_rgb=True)
train_dataloader = dict(
    batch_size=64,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmpetl.FGVC', task='CUB', split='train', data_root='data/fgvc',
        pipeline=[
            dict(type='mmpetl.LoadImage'),
            dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bilinear'),
            dict(type='RandomCrop', crop_size=224),
            dict(type='RandomFlip', prob=0.5, direction='horizontal'),
            dict(type='PackInputs'),
        ]))
val_dataloader = dict(
    batch_size=128,
    num_workers=4,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpetl.FGVC', task='CUB', split='test', data_root='data/fgvc', test_mode=True,
        pipeline=[
            dict(type='mmpetl.LoadImage'),
            dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bilinear'),
            dict(type='CenterCrop', crop_size=224),
            dict(type='PackInputs'),
        ]))
test_dataloader = val_dataloader
val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1, ))
test_evaluator = val_evaluator
