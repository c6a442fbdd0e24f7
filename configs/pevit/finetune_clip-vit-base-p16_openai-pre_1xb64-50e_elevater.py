"""Fine-tuning of the whole image tower, CLIP ViT-B/16, ELEVATER's 20 data sets.

    mmpetl fetch clip-vit-base-p16 elevater-prompts elevater/dtd
    python tools/text_features.py clip-vit-base-p16 --suite elevater
    python tools/train.py configs/pevit/finetune_clip-vit-base-p16_openai-pre_1xb64-50e_elevater.py \
        --cfg-options task.name=dtd
    mmpetl sweep configs/pevit/finetune_clip-vit-base-p16_openai-pre_1xb64-50e_elevater.py --suite elevater

Trainable: 86,192,640 in the tower, 513 per class in the head; mean over the 20 data sets 86,222,163.
The head starts from the text features of the classes, as in all published scripts; a random head is another recipe,
without a published number: --cfg-options model.head.text_features=None.
The released code reports the best test epoch; here the last epoch counts.
Expected: unknown (no table for B/16 is published). Measured: unknown.
"""

_base_ = '../_base_/recipes/elevater_clip-p16.py'
model = dict(backbone=dict(tune=['*'], trunk='train'), neck=dict(frozen=False))
