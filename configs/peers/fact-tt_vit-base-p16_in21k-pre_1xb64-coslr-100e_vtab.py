"""FacT, tensor train form (arXiv 2212.03145), ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/fact-tt_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/fact-tt_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable without the head, mean over the tasks: 39,734 (2 x 768 r + 144 r^2); 769 per class in the head.
Ranks and scales per task are the released ones.
The released training reports the best of ten tests; here the last epoch counts.
Expected: unknown (no average of this form was found). Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit-drop_vtab.py'
model = dict(backbone=dict(petl=[dict(type='FacT', kind='tt', rank=16, scale=1.)]))
per_task = dict(
    columns=['model.backbone.petl.0.rank', 'model.backbone.petl.0.scale'],
    rows=dict(
        cifar=[8, 1.0], caltech101=[16, 10.0], dtd=[8, 0.01], oxford_flowers102=[16, 1.0], oxford_iiit_pet=[8, 1.0],
        svhn=[16, 100.0], sun397=[8, 1.0], patch_camelyon=[8, 10.0], eurosat=[8, 100.0], resisc45=[8, 0.1],
        diabetic_retinopathy=[8, 1.0], clevr_count=[16, 1.0], clevr_dist=[4, 10.0], dmlab=[16, 10.0], kitti=[16, 10.0],
        dsprites_loc=[16, 100.0], dsprites_ori=[16, 1.0], smallnorb_azi=[16, 100.0], smallnorb_ele=[8, 10.0]))
