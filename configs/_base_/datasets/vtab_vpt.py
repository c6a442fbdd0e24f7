"""VTAB-1k with the pictures of VPT and E2VPT.

Their pictures come out of TensorFlow Datasets and are resized by its bilinear filter, which does not average over the
shrunken pixels; OpenCV's bilinear filter is within 0.013 of it after normalisation, Pillow's bicubic one (SynQT,
FacT, Convpass, here vtab.py) differs by 0.104 on average and 1.86 at most.
"""

_base_ = './vtab.py'
pipeline = [
    _base_.pipeline[0],
    dict(type='Resize', scale=(224, 224), backend='cv2', interpolation='bilinear'),
    _base_.pipeline[2],
]
train_dataloader = dict(dataset=dict(dataset=dict(pipeline=pipeline)))
val_dataloader = dict(dataset=dict(pipeline=pipeline))
test_dataloader = val_dataloader
