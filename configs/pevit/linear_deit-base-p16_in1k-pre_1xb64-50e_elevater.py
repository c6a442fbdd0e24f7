"""Linear probe, DeiT-B/16, ELEVATER's 20 data sets.

    mmpetl fetch deit-base elevater/dtd
    python tools/train.py configs/pevit/linear_deit-base-p16_in1k-pre_1xb64-50e_elevater.py \
        --cfg-options task.name=dtd
    mmpetl sweep configs/pevit/linear_deit-base-p16_in1k-pre_1xb64-50e_elevater.py --suite elevater

Trainable: 769 per class in the head; mean over the 20 data sets 44,255.
The head starts at random: the backbone has no text tower.  The published code forgets to freeze this base; here it is
frozen.
Expected: unknown (no number of this base was found). Measured: unknown.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/deit-base-p16.py', '../_base_/datasets/elevater_imagenet.py',
    '../_base_/schedules/elevater_sgd_50e.py'
]
model = dict(head=_base_.elevater_head)
