"""SynQT, ViT-B/16 supervised on ImageNet-21k, VTAB-1k (arXiv 2407.06964).

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/synqt/synqt_vit-base-p16_in21k-pre_1xb64-coslr-50e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/synqt/synqt_vit-base-p16_in21k-pre_1xb64-coslr-50e_vtab.py --suite vtab

Trainable without the head: 2,742,637 / 2,632,045 / 2,604,397 with 16 / 4 / 1 queries (the published code counts
18,469 more that can never receive a gradient); 769 per class in the head.
Settings per task are the released ones.
The released training keeps drop-path on in the frozen base and reports the best of five tests; here the base is in
evaluation mode and the last epoch counts.
Expected: unknown (the paper's tables are not at hand). Measured: unknown.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/vit-base-p16_in21k.py', '../_base_/datasets/vtab.py',
    '../_base_/schedules/synqt_adamw_50e.py'
]
model = dict(
    backbone=dict(petl=[dict(type='SynQT', num_tokens=4, attn_scale=0.1, ffn_scale=0.1, feat_scale=0.1)]),
    head=dict(init_cfg=None))  # PyTorch's own initialisation, as published
per_task = dict(
    columns=[
        'model.backbone.petl.0.num_tokens', 'model.backbone.petl.0.attn_scale', 'model.backbone.petl.0.ffn_scale',
        'model.backbone.petl.0.feat_scale'
    ],
    rows=dict(
        cifar=[4, 1., .1, .1],
        caltech101=[4, .1, .1, 1.],
        dtd=[1, .1, .1, .1],
        oxford_flowers102=[4, .1, .1, .1],
        oxford_iiit_pet=[1, .1, 1., 1.],
        svhn=[4, .1, 1., 1.],
        sun397=[1, 1., .1, .1],
        patch_camelyon=[16, .1, 1., .1],
        eurosat=[16, 1., .1, .1],
        resisc45=[4, .1, .1, .1],
        diabetic_retinopathy=[16, 1., .1, .1],
        clevr_count=[16, .1, .1, .1],
        clevr_dist=[16, .1, .1, .1],
        dmlab=[1, .1, .1, 1.],
        kitti=[16, 1., .1, .1],
        dsprites_loc=[16, .1, .1, .1],
        dsprites_ori=[4, .1, .1, 1.],
        smallnorb_azi=[16, .1, 1., 1.],
        smallnorb_ele=[16, 1., .1, .1]))
