"""Compacter (arXiv 2106.04647), CLIP ViT-B/16, ELEVATER's 20 data sets.

    mmpetl fetch clip-vit-base-p16 elevater-prompts elevater/dtd
    python tools/text_features.py clip-vit-base-p16 --suite elevater
    python tools/train.py configs/pevit/compacter_clip-vit-base-p16_openai-pre_1xb64-50e_elevater.py \
        --cfg-options task.name=dtd
    mmpetl sweep configs/pevit/compacter_clip-vit-base-p16_openai-pre_1xb64-50e_elevater.py --suite elevater

Trainable: 48,384 in the tower, 513 per class in the head; mean over the 20 data sets 77,907.
The published count leaves out the 64 shared rule parameters, which stay frozen. The published start adds noise in
every block; here the branch starts at zero.
The head starts from the text features of the classes, as in all published scripts; a random head is another recipe,
without a published number: --cfg-options model.head.text_features=None.
The released code reports the best test epoch, and its feature norm learns statistics in the first epoch alone; here
the last epoch counts and all epochs do.
Expected: unknown (no table for B/16 is published). Measured: unknown.
"""

_base_ = '../_base_/recipes/elevater_clip-p16.py'
model = dict(backbone=dict(petl=[dict(type='Compacter', mid_dims=64, phm_dim=4)]))
