"""AdaptFormer beside the feed-forward sublayer of all blocks, Quick, Draw! (20 classes).

    python tools/fetch_data.py dinov2-vits14 quickdraw20
    python tools/train.py configs/quickstart/adaptformer.py

Trainable: 595,200 parameters in AdaptFormer (12 blocks x (2 x 384 x 64 + 64 + 384)) and 7,700 in the head.
Accuracy on the 600 test drawings, measured on CPU, seed 0, commit 5e5706ead: 80.8 % (linear probe: 72.8 %).
"""

_base_ = '../_base_/recipes/quickstart.py'
model = dict(
    backbone=dict(img_size=98, petl=[dict(type='AdaptFormer', mid_dims=64, scale=0.1)]),
    head=dict(num_classes=20))
