"""Linear probe, CLIP ViT-B/32, ELEVATER's 20 data sets, with a head that starts at random.

    mmpetl fetch clip-vit-base-p32 elevater/dtd
    python tools/train.py configs/pevit/linear-random-head_clip-vit-base-p32_openai-pre_1xb64-50e_elevater.py \
        --cfg-options task.name=dtd
    mmpetl sweep configs/pevit/linear-random-head_clip-vit-base-p32_openai-pre_1xb64-50e_elevater.py --suite elevater

Trainable: 0 in the tower, 513 per class in the head; mean over the 20 data sets 29,523.
For data sets whose classes have no telling names. Expected: unknown (the published scripts start from text features).
Measured: unknown.
"""

_base_ = './linear_clip-vit-base-p32_openai-pre_1xb64-50e_elevater.py'
model = dict(head=dict(text_features=None))
