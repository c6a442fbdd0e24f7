"""Convpass (arXiv 2207.07039), ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/convpass_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/convpass_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 327,552 in the method, 769 per class in the head. Scales and starts per task are the released ones.
The released training reports the best of ten tests; here the last epoch counts.
Expected, published, Natural / Specialized / Structured: 81.69 / 85.31 / 62.68; mean of 3 groups 76.56.
Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit-drop_vtab.py'
model = dict(backbone=dict(petl=[
    dict(type='Convpass', mid_dims=8, scale=1., drop_path_rate=[0.1 * i / 11 for i in range(12)])]))
per_task = dict(
    columns=['model.backbone.petl.0.scale', 'model.backbone.petl.0.init'],
    rows=dict(
        cifar=[0.1, 'identity'],
        caltech101=[1.0, 'identity'],
        dtd=[0.01, 'xavier'],
        oxford_flowers102=[0.1, 'xavier'],
        oxford_iiit_pet=[1.0, 'xavier'],
        svhn=[100.0, 'xavier'],
        sun397=[0.1, 'identity'],
        patch_camelyon=[10.0, 'identity'],
        eurosat=[10.0, 'identity'],
        resisc45=[10.0, 'identity'],
        diabetic_retinopathy=[1.0, 'identity'],
        clevr_count=[1.0, 'identity'],
        clevr_dist=[0.1, 'xavier'],
        dmlab=[10.0, 'identity'],
        kitti=[10.0, 'xavier'],
        dsprites_loc=[100.0, 'xavier'],
        dsprites_ori=[0.1, 'xavier'],
        smallnorb_azi=[100.0, 'xavier'],
        smallnorb_ele=[1.0, 'xavier']))
