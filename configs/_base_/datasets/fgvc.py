"""FGVC; any of CUB, nabirds, OxfordFlowers, StanfordDogs, StanfordCars with --cfg-options task.name=nabirds.

Data: VPT's json splits beside the images, <root>/CUB/{train,val,test}.json and <root>/CUB/images/;
'mmpetl data check fgvc --root <root>' looks at it. VPT's augmentation: short edge 256, random 224 crop and flip; centre
crop for testing.
"""

_base_ = './pictures.py'
task = dict(suite='fgvc', name='CUB', root='data/fgvc', phase='final')
data_preprocessor = dict(num_classes=200)
train_dataloader = dict(
    batch_size=64,
    num_workers=4,
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
    dataset=dict(
        type='mmpetl.FGVC', task='CUB', split='test', data_root='data/fgvc', test_mode=True,
        pipeline=[
            dict(type='mmpetl.LoadImage'),
            dict(type='ResizeEdge', scale=256, edge='short', backend='pillow', interpolation='bilinear'),
            dict(type='CenterCrop', crop_size=224),
            dict(type='PackInputs'),
        ]))
test_dataloader = val_dataloader
