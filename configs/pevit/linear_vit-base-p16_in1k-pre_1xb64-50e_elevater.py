"""Linear probe, ViT-B/16 supervised on ImageNet, ELEVATER's 20 data sets.

    mmpetl fetch vit-base-in1k elevater/dtd
    python tools/train.py configs/pevit/linear_vit-base-p16_in1k-pre_1xb64-50e_elevater.py --cfg-options task.name=dtd
    mmpetl sweep configs/pevit/linear_vit-base-p16_in1k-pre_1xb64-50e_elevater.py --suite elevater

Trainable: 769 per class in the head; mean over the 20 data sets 44,255.
The head starts at random: the backbone has no text tower. Inputs in -1..1, as published.
Expected: unknown (no number of this base was found). Measured: unknown.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/vit-base-p16_in1k.py',
    '../_base_/datasets/elevater_imagenet.py', '../_base_/schedules/elevater_sgd_50e.py'
]
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
model = dict(head=_base_.elevater_head)
