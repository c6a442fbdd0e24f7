"""Two small real data sets in ELEVATER's form, 5 images per class, at 56 px: --cfg-options task.name=digits (or
pneumonia).

Data: python tools/fetch_data.py small-suite
The suite is described by configs/small_suite/suite_fewshot.json. Normalisation is that of the backbone, DINOv2.
"""

_base_ = './elevater.py'
task = dict(suite='{{ fileDirname }}/../../small_suite/suite_fewshot.json', name='digits', root=None)
data_preprocessor = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])
pipeline = [
    dict(type='mmpetl.LoadImage'),
    dict(type='ResizeEdge', scale=56, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=56),
    dict(type='PackInputs'),
]
train_dataloader = dict(num_workers=0, dataset=dict(dataset=dict(pipeline=pipeline)))
val_dataloader = dict(batch_size=100, num_workers=0, dataset=dict(pipeline=pipeline))
test_dataloader = val_dataloader
