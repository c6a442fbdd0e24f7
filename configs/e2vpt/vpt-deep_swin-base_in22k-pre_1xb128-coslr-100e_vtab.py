"""VPT-deep, Swin-B supervised on ImageNet-22k, VTAB-1k (arXiv 2203.12119).

    mmpetl fetch swin-base-in22k vtab
    python tools/train.py configs/e2vpt/vpt-deep_swin-base_in22k-pre_1xb128-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/e2vpt/vpt-deep_swin-base_in22k-pre_1xb128-coslr-100e_vtab.py --suite vtab

Trainable with P prompts: 12,032 P in the method, 1,025 per class in the head.
Prompt lengths per task are not published; 10 prompts here; a batch has 128 images below 100 prompts, else 64.
Learning rate and weight decay are searched.
Expected, published, Natural / Specialized / Structured: 76.78 / 84.53 / 53.35. Measured: unknown.
"""

_base_ = ['../_base_/recipes/swin-base_in22k_vtab-vpt.py', '../_base_/schedules/vpt_sgd_100e.py']
model = dict(
    backbone=dict(petl=[dict(type='VPT', num_tokens=10, deep=True, drop_rate=0.1)]),
    head=dict(init_cfg=_base_.head_init))
train_dataloader = dict(batch_size=128)
