"""Full fine-tuning of VideoMAE ViT-B, Something-Something V2 (the baseline of APT, arXiv 2403.06978).

    python tools/prepare_ssv2.py data/ssv2
    bash tools/dist_train.sh configs/apt/full_videomae-base_ssv2-pre_64xb6-16-coslr-30e_ssv2.py 8

Trainable: 86,361,006 (everything).
Recipe: the published script of VideoMAE (64 GPUs; mixed precision by --amp).
Expected top-1 in %: published 70.8 (VideoMAE's list of models), measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/videomae-base.py', '../_base_/datasets/ssv2_16.py',
    '../_base_/schedules/videomae_adamw.py'
]
max_epochs = 30
model = dict(
    data_preprocessor=dict(
        blending=dict(
            type='RandomBatchAugment',
            augments=[
                dict(type='MixupBlending', alpha=0.8, num_classes=174),
                dict(type='CutmixBlending', alpha=1., num_classes=174)
            ],
            probs=[0.5, 0.5])),
    backbone=dict(
        tune=['*'],
        trunk='train',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/videomae_vit-base_ssv2_2400e.pth')),
    cls_head=dict(num_classes=174, label_smooth_eps=0.1))
train_pipeline = [
    *_base_.train_pipeline[:3],
    dict(type='mmpetl.ClipRandAugment', num_ops=4, magnitude=7, magnitude_std=0.5),
    *_base_.train_pipeline[4:-2],
    dict(
        type='RandomErasing',
        erase_prob=0.25,
        mode='rand',
        fill_color=(123.675, 116.28, 103.53),
        fill_std=(58.395, 57.12, 57.375)),
    *_base_.train_pipeline[-2:],
]
train_dataloader = dict(batch_size=6, dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_epochs=max_epochs)
optim_wrapper = dict(optimizer=dict(lr=5e-4), paramwise_cfg=dict(decay_rate=0.75))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=5, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', T_max=25, eta_min_ratio=2e-3, begin=5, end=30, convert_to_iter_based=True),
]
