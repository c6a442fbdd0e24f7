"""Linear probe by VPT's recipe, Swin-B supervised on ImageNet-22k, VTAB-1k (arXiv 2203.12119).

    mmpetl fetch swin-base-in22k vtab
    python tools/train.py configs/e2vpt/vpt-linear_swin-base_in22k-pre_1xb1024-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/e2vpt/vpt-linear_swin-base_in22k-pre_1xb1024-coslr-100e_vtab.py --suite vtab

Trainable: 1,025 per class in the head.
Expected, published, Natural / Specialized / Structured: 73.52 / 80.77 / 33.52. Measured: unknown.
"""

_base_ = ['../_base_/recipes/swin-base_in22k_vtab-vpt.py', '../_base_/schedules/vpt_sgd_100e.py']
model = dict(head=dict(init_cfg=_base_.head_init))
train_dataloader = dict(batch_size=1024)
