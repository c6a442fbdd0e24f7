"""LoRA and AdaptFormer together, Quick, Draw! (20 classes).

    python tools/fetch_data.py dinov2-vits14 quickdraw20
    python tools/train.py configs/quickstart/lora_adaptformer.py

Trainable: 816,384 parameters in the two methods and 7,700 in the head.
Expected accuracy on the 600 test drawings: unknown.
"""

_base_ = './linear.py'
model = dict(backbone=dict(petl=[
    dict(type='LoRA', rank=8, alpha=16, ops='qkv'),
    dict(type='AdaptFormer', mid_dims=64, scale=0.1),
]))
optim_wrapper = dict(optimizer=dict(lr=3e-3))
