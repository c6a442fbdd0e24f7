"""E2VPT without pruning, ViT-B/16, MAE, VTAB-1k (arXiv 2307.13770).

    python tools/train.py configs/e2vpt/e2vpt_vit-base-p16_mae-pre_1xb128-coslr-100e_vtab.py --cfg-options
    task.name=kitti mmpetl sweep configs/e2vpt/e2vpt_vit-base-p16_mae-pre_1xb128-coslr-100e_vtab.py --suite vtab

Trainable with P prompts and K key/value prompts: 9,216 (P + K) in the method, 769 per class in the head.
Prompt lengths per task are those of the released command list; learning rate and weight decay are searched.
Aims at the table of this backbone in the paper. Expected, published with pruning,
Natural / Specialized / Structured: 59.52 / 77.80 / 44.65. Measured: unknown.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/vit-base-p16_mae.py', '../_base_/datasets/vtab.py',
    '../_base_/schedules/vpt_sgd_100e.py'
]
model = dict(
    backbone=dict(petl=[dict(type='E2VPT', num_tokens=10, num_kv_tokens=5, drop_rate=0.1)]),
    head=dict(
        init_cfg=dict(
            type='Kaiming',
            layer='Linear',
            mode='fan_out',
            nonlinearity='relu',
            distribution='normal',
            bias=-4.59511985013459)))
train_dataloader = dict(batch_size=128)
per_task = dict(
    columns=['model.backbone.petl.0.num_tokens', 'model.backbone.petl.0.num_kv_tokens'],
    rows=dict(
        cifar=[5, 5],
        caltech101=[32, 5],
        dtd=[10, 5],
        oxford_flowers102=[1, 1],
        oxford_iiit_pet=[10, 5],
        svhn=[10, 5],
        sun397=[10, 5],
        patch_camelyon=[10, 10],
        eurosat=[10, 5],
        resisc45=[10, 5],
        diabetic_retinopathy=[10, 5],
        clevr_count=[10, 5],
        clevr_dist=[10, 5],
        dmlab=[10, 5],
        kitti=[10, 5],
        dsprites_loc=[5, 5],
        dsprites_ori=[5, 5],
        smallnorb_azi=[10, 5],
        smallnorb_ele=[10, 5]))
