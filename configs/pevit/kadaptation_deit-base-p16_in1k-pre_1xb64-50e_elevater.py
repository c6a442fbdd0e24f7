"""KAdaptation (arXiv 2203.16329), DeiT-B/16, ELEVATER's 20 data sets.

    mmpetl fetch deit-base elevater/dtd
    python tools/train.py configs/pevit/kadaptation_deit-base-p16_in1k-pre_1xb64-50e_elevater.py \
        --cfg-options task.name=dtd
    mmpetl sweep configs/pevit/kadaptation_deit-base-p16_in1k-pre_1xb64-50e_elevater.py --suite elevater

Trainable: 50,176 in the base, 769 per class in the head; mean over the 20 data sets 94,431.
The head starts at random: the backbone has no text tower.
Expected: unknown (no number of this base was found). Measured: unknown.
"""

_base_ = './linear_deit-base-p16_in1k-pre_1xb64-50e_elevater.py'
model = dict(backbone=dict(petl=[dict(type='KAdaptation')]))
