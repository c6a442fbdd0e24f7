"""Linear probe by VPT's recipe, ViT-B/16, MAE, VTAB-1k (arXiv 2203.12119).

    mmpetl fetch vit-base-mae vtab
    python tools/train.py configs/e2vpt/vpt-linear_vit-base-p16_mae-pre_1xb1024-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/e2vpt/vpt-linear_vit-base-p16_mae-pre_1xb1024-coslr-100e_vtab.py --suite vtab

Trainable: 769 per class in the head.
Expected, published, Natural / Specialized / Structured: 18.87 / 53.72 / 23.70. Measured: unknown.
"""

_base_ = ['../_base_/recipes/vit-base-p16_mae_vtab-vpt.py', '../_base_/schedules/vpt_sgd_100e.py']
model = dict(head=dict(init_cfg=_base_.head_init))
train_dataloader = dict(batch_size=1024)
sweep = dict(grid={
    'optim_wrapper.optimizer.lr': [.0025, .005, .025, .05, .1, .25, .5, 1., 2.5, 5., 10., 25., 50.]
})
