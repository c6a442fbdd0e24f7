"""SSF (arXiv 2210.08823), ViT-B/16 of AugReg on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-augreg vtab
    python tools/train.py configs/peers/ssf_vit-base-p16_augreg-in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/ssf_vit-base-p16_augreg-in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Other weights than the other methods' ViT-B/16, and inputs in -1..1, as published: do not compare across.
Trainable: 205,824 in the method, 769 per class in the head. Rates, decays and drop-paths per task are the released
ones; factors and shifts get no weight decay.
The released training reports its best test; here the last epoch counts.
Expected, published, Natural / Specialized / Structured: 81.57 / 86.55 / 58.96; mean of 19 73.10, mean of 3 groups
75.69. Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit_vtab.py'
data_preprocessor = dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5])
model = dict(
    backbone=dict(
        petl=[dict(type='SSF')],
        drop_path_rate=0.,
        trunk='train',
        init_cfg=dict(
            checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0.npz'
        )))
optim_wrapper = dict(optimizer=dict(lr=5e-3, weight_decay=5e-5), paramwise_cfg=dict(flat_decay_mult=0.))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-4, begin=0, end=11),
    dict(type='CosineAnnealingLR', T_max=100, eta_min=1e-8, begin=0, end=100),
]
per_task = dict(
    columns=['optim_wrapper.optimizer.lr', 'optim_wrapper.optimizer.weight_decay', 'model.backbone.drop_path_rate'],
    rows=dict(
        cifar=[0.005, 5e-05, 0.0],
        caltech101=[0.001, 0.05, 0.1],
        dtd=[0.005, 5e-05, 0.0],
        oxford_flowers102=[0.005, 5e-05, 0.0],
        oxford_iiit_pet=[0.005, 5e-05, 0.0],
        svhn=[0.01, 5e-05, 0.0],
        sun397=[0.005, 5e-05, 0.0],
        patch_camelyon=[0.005, 5e-05, 0.0],
        eurosat=[0.003, 0.05, 0.2],
        resisc45=[0.002, 5e-05, 0.1],
        diabetic_retinopathy=[0.005, 5e-05, 0.2],
        clevr_count=[0.002, 0.05, 0.1],
        clevr_dist=[0.05, 0.05, 0.1],
        dmlab=[0.005, 5e-05, 0.1],
        kitti=[0.01, 5e-05, 0.0],
        dsprites_loc=[0.01, 5e-05, 0.0],
        dsprites_ori=[0.005, 5e-05, 0.2],
        smallnorb_azi=[0.02, 5e-05, 0.1],
        smallnorb_ele=[0.005, 0.05, 0.2]))
