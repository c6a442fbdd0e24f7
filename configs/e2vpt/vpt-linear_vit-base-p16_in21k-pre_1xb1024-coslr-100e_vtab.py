"""Linear probe by VPT's recipe, ViT-B/16 supervised on ImageNet-21k, VTAB-1k (arXiv 2203.12119).

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/e2vpt/vpt-linear_vit-base-p16_in21k-pre_1xb1024-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/e2vpt/vpt-linear_vit-base-p16_in21k-pre_1xb1024-coslr-100e_vtab.py --suite vtab

Trainable: 769 per class in the head.
Expected, published, Natural / Specialized / Structured: 68.93 / 77.16 / 26.84; mean of 19 52.94. Measured: unknown.
"""

_base_ = ['../_base_/recipes/vit-base-p16_in21k_vtab-vpt.py', '../_base_/schedules/vpt_sgd_100e.py']
model = dict(head=dict(init_cfg=_base_.head_init))
train_dataloader = dict(batch_size=1024)
