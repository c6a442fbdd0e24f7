"""VideoMAE's recipe for full fine-tuning: AdamW with layer-wise decay, 5e-4 for 256 videos, five epochs warm-up, half a
cosine to 1e-6."""

_base_ = './videos.py'
max_epochs = 100
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(
    constructor='LearningRateDecayOptimizerConstructor',
    optimizer=dict(type='AdamW', lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(num_layers=12, decay_rate=0.75, decay_type='layer_wise'))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=5, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        T_max=max_epochs - 5,
        eta_min_ratio=2e-3,
        begin=5,
        end=max_epochs,
        convert_to_iter_based=True),
]
# Augmentation and blending of the published scripts; a recipe puts them into its data set's pipeline.
strong_augment = dict(type='mmpetl.ClipRandAugment', num_ops=4, magnitude=7, magnitude_std=0.5)
erase = dict(
    type='RandomErasing',
    erase_prob=0.25,
    mode='rand',
    fill_color=(123.675, 116.28, 103.53),
    fill_std=(58.395, 57.12, 57.375))
blends = [dict(type='MixupBlending', alpha=0.8), dict(type='CutmixBlending', alpha=1.)]
