"""KAdaptation (arXiv 2203.16329), ViT-B/16, MAE, ELEVATER's 20 data sets.

    mmpetl fetch vit-base-mae elevater/dtd
    python tools/train.py configs/pevit/kadaptation_vit-base-p16_mae-pre_1xb64-50e_elevater.py \
        --cfg-options task.name=dtd
    mmpetl sweep configs/pevit/kadaptation_vit-base-p16_mae-pre_1xb64-50e_elevater.py --suite elevater

Trainable: 50,176 in the base, 769 per class in the head; mean over the 20 data sets 94,431.
The head starts at random: the backbone has no text tower.
Expected: unknown (no number of this base was found). Measured: unknown.
"""

_base_ = './linear_vit-base-p16_mae-pre_1xb64-50e_elevater.py'
model = dict(backbone=dict(petl=[dict(type='KAdaptation')]))
