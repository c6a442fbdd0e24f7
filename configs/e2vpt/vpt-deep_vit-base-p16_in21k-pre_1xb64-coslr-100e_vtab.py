"""VPT-deep, ViT-B/16 supervised on ImageNet-21k, VTAB-1k (arXiv 2203.12119).

    python tools/train.py configs/e2vpt/vpt-deep_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --cfg-options
    task.name=kitti mmpetl sweep configs/e2vpt/vpt-deep_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable with P prompts: 9,216 P in the method, 769 per class in the head.
Prompt lengths per task are the published ones; learning rate and weight decay are searched.
Aims at the table of this backbone in the paper. Expected, published,
Natural / Specialized / Structured: 78.48 / 82.43 / 54.98; mean of 19 69.43. Measured: unknown.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/vit-base-p16_in21k.py', '../_base_/datasets/vtab.py',
    '../_base_/schedules/vpt_sgd_100e.py'
]
model = dict(
    backbone=dict(petl=[dict(type='VPT', num_tokens=10, deep=True, drop_rate=0.1)]),
    head=dict(
        init_cfg=dict(
            type='Kaiming',
            layer='Linear',
            mode='fan_out',
            nonlinearity='relu',
            distribution='normal',
            bias=-4.59511985013459)))
train_dataloader = dict(batch_size=64)
per_task = dict(
    columns=['model.backbone.petl.0.num_tokens'],
    rows=dict(
        cifar=[10], caltech101=[10], dtd=[10], oxford_flowers102=[1], oxford_iiit_pet=[1], svhn=[50], sun397=[5],
        patch_camelyon=[100], eurosat=[100], resisc45=[10], diabetic_retinopathy=[1],
        clevr_count=[50], clevr_dist=[200], dmlab=[100], kitti=[50], dsprites_loc=[10], dsprites_ori=[50],
        smallnorb_azi=[200], smallnorb_ele=[200]))
