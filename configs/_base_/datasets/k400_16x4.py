"""Kinetics-400 as APT reads it: as HMDB51, tested on 5 clips of 3 crops.

Data: mmpetl fetch k400, then python tools/prepare_k400.py data/k400
The published scripts for this data set name the lists of Something-Something V2, by mistake.
"""

_base_ = './ucf101_16x4.py'
data = dict(data_root='data/k400/', num_classes=400)
train_dataloader = dict(dataset=dict(ann_file='train.csv', **data))
val_dataloader = dict(dataset=dict(ann_file='val.csv', **data))
test_dataloader = dict(dataset=dict(ann_file='test.csv', **data))
