"""Four small real data sets in VTAB-1k's form, at 56 px: --cfg-options task.name=digits (or quickdraw, pneumonia,
dsprites_loc).

Data: python tools/fetch_data.py small-suite
The suite is described by configs/small_suite/suite.json.
"""

_base_ = './vtab.py'
task = dict(suite='{{ fileDirname }}/../../small_suite/suite.json', name='quickdraw', root=None)
pipeline = [
    dict(type='mmpetl.LoadImage'),
    dict(type='Resize', scale=(56, 56), backend='pillow', interpolation='bicubic'),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=32, num_workers=0, dataset=dict(dataset=dict(pipeline=pipeline)))
val_dataloader = dict(batch_size=100, num_workers=0, dataset=dict(pipeline=pipeline))
test_dataloader = val_dataloader
