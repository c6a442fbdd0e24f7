"""Quick, Draw!, 20 classes, 28 x 28 drawings: 1,400 for training, 600 for testing.

Data: python tools/fetch_data.py quickdraw20
98 px makes one 14 px patch out of exactly 4 x 4 pixels of a drawing. Hyper-parameters are chosen on fit.txt and
val.txt, which train.txt is made of; the test images are looked at once, after the last epoch.
"""

data_root = '{{$MMPETL_CACHE:~/.cache/mmpetl}}/quickdraw20'
pipeline = [
    dict(type='mmpetl.LoadImage', imdecode_backend='cv2'),
    dict(type='Resize', scale=(98, 98)),
    dict(type='PackInputs'),
]
train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='mmpetl.ListDataset', data_root=data_root, ann_file='train.txt', classes='classes.txt', pipeline=pipeline))
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmpetl.ListDataset', data_root=data_root, ann_file='test.txt', classes='classes.txt', pipeline=pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, ))
test_evaluator = val_evaluator
