"""Zero-shot classification, CLIP ViT-B/16, ELEVATER's 20 data sets: softmax of 100 times the cosine with the text
features.

    mmpetl fetch clip-vit-base-p16 elevater-prompts elevater/dtd
    python tools/text_features.py clip-vit-base-p16 --suite elevater
    python tools/test.py configs/pevit/zeroshot_clip-vit-base-p16_openai-pre_elevater.py --cfg-options task.name=dtd
    mmpetl sweep configs/pevit/zeroshot_clip-vit-base-p16_openai-pre_elevater.py --suite elevater

Trainable: 0.
Expected: unknown. Measured: unknown.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/clip-vit-base-p16.py', '../_base_/datasets/elevater.py'
]
model = dict(
    head=dict(
        _delete_=True,
        type='mmpetl.ZeroShotHead',
        num_classes=102,
        text_features=_base_.cache + '/text_features/openai-vit-b-16/{task}.npz'))
train_dataloader = None
val_cfg = dict()
test_cfg = dict()
sweep = dict(grid={}, seeds=[0], shot_seeds=[0])
