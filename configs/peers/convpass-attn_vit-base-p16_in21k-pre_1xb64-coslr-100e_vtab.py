"""Convpass beside the attention only (arXiv 2207.07039), ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/convpass-attn_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/convpass-attn_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 163,776 in the method, 769 per class in the head. Scales per task are the released ones.
The released training reports the best of ten tests; here the last epoch counts.
Expected, published, Natural / Specialized / Structured: 81.24 / 84.73 / 61.53; mean of 3 groups 75.83.
Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit-drop_vtab.py'
model = dict(backbone=dict(petl=[
    dict(
        type='Convpass',
        mid_dims=8,
        scale=1.,
        init='xavier',
        subs='attn',
        drop_path_rate=[0.1 * i / 11 for i in range(12)])]))
per_task = dict(
    columns=['model.backbone.petl.0.scale'],
    rows=dict(
        cifar=[0.1],
        caltech101=[100.0],
        dtd=[0.1],
        oxford_flowers102=[1.0],
        oxford_iiit_pet=[1.0],
        svhn=[100.0],
        sun397=[0.1],
        patch_camelyon=[10.0],
        eurosat=[10.0],
        resisc45=[100.0],
        diabetic_retinopathy=[0.1],
        clevr_count=[10.0],
        clevr_dist=[1.0],
        dmlab=[10.0],
        kitti=[10.0],
        dsprites_loc=[10.0],
        dsprites_ori=[1.0],
        smallnorb_azi=[100.0],
        smallnorb_ele=[1.0]))
