"""Linear probe, ViT-B/16, MoCo v3, ELEVATER's 20 data sets.

    mmpetl fetch vit-base-mocov3 elevater/dtd
    python tools/train.py configs/pevit/linear_vit-base-p16_mocov3-pre_1xb64-50e_elevater.py \
        --cfg-options task.name=dtd
    mmpetl sweep configs/pevit/linear_vit-base-p16_mocov3-pre_1xb64-50e_elevater.py --suite elevater

Trainable: 769 per class in the head; mean over the 20 data sets 44,255.
The head starts at random: the backbone has no text tower. The published file is that of pre-training
(vit-b-300ep.pth.tar); the one of the linear probe holds the same base.
Expected: unknown (no number of this base was found). Measured: unknown.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/vit-base-p16_mocov3.py',
    '../_base_/datasets/elevater_imagenet.py', '../_base_/schedules/elevater_sgd_50e.py'
]
model = dict(head=_base_.elevater_head)
