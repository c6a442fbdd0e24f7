"""LoRA and AdaptFormer together, Quick, Draw! (20 classes).

    python tools/fetch_data.py dinov2-vits14 quickdraw20
    python tools/train.py configs/quickstart/lora_adaptformer.py

Trainable: 816,384 parameters in the two methods and 7,700 in the head.
Accuracy on the 600 test drawings, measured on CPU, seed 0, commit 5e5706ead: 84.7 % (linear probe: 72.8 %).
"""

_base_ = '../_base_/recipes/quickstart.py'
model = dict(
    backbone=dict(
        img_size=98,
        petl=[
            dict(type='LoRA', rank=8, alpha=16, ops='qkv'),
            dict(type='AdaptFormer', mid_dims=64, scale=0.1),
        ]),
    head=dict(num_classes=20))
