"""Zero-shot classification, CLIP ViT-B/32, ELEVATER's 20 data sets: softmax of 100 times the cosine with the text
features.

    mmpetl sweep configs/pevit/zeroshot_clip-vit-base-p32_openai-pre_elevater.py --suite elevater \
        --cfg-options model.head.text_features='<folder>/{task}.npz'

Trainable: 0. Text features: tools/text_features.py.
Expected, published: mean of 20 56.64 (third-party page of the benchmark). Measured: unknown.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/clip-vit-base-p32.py', '../_base_/datasets/elevater.py',
]
model = dict(
    head=dict(
        _delete_=True, type='mmpetl.ZeroShotHead', num_classes=102,
        text_features='{{$MMPETL_CACHE:~/.cache/mmpetl}}/text_features/openai-vit-b-32/caltech-101.npz'))
train_dataloader = None
val_cfg = dict()
test_cfg = dict()
sweep = dict(grid={}, seeds=[0], shot_seeds=[0])
