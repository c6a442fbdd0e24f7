"""E2VPT without pruning, Swin-B supervised on ImageNet-22k, VTAB-1k (arXiv 2307.13770).

    mmpetl fetch swin-base-in22k vtab
    python tools/train.py configs/e2vpt/e2vpt_swin-base_in22k-pre_1xb80-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/e2vpt/e2vpt_swin-base_in22k-pre_1xb80-coslr-100e_vtab.py --suite vtab

Trainable with P prompts and K key/value prompts: 12,032 (P + K) in the method, 1,025 per class in the head.
Prompt lengths and batches of caltech101, cifar, patch_camelyon and smallnorb_ele are those of the released commands;
the other 15 are not released and are to be chosen by
configs/e2vpt/e2vpt-lengths_swin-base_in22k-pre_1xb80-coslr-100e_vtab.py. Prompt dropout is one mask per batch on
Swin, as published.
Expected, published with pruning, Natural / Specialized / Structured: 83.31 / 84.95 / 57.35. Measured: unknown.
"""

_base_ = [
    '../_base_/recipes/swin-base_in22k_vtab-vpt.py', '../_base_/schedules/vpt_sgd_100e.py',
    '../_base_/lengths/e2vpt_swin_vtab.py'
]
model = dict(
    backbone=dict(petl=[dict(type='E2VPT', num_tokens=10, num_kv_tokens=1, drop_rate=0.1)]),
    head=dict(init_cfg=_base_.head_init))
train_dataloader = dict(batch_size=80)
