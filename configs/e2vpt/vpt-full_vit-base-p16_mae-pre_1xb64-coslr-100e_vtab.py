"""Full fine-tuning by VPT's recipe, ViT-B/16, MAE, VTAB-1k (arXiv 2203.12119).

    mmpetl fetch vit-base-mae vtab
    python tools/train.py configs/e2vpt/vpt-full_vit-base-p16_mae-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/e2vpt/vpt-full_vit-base-p16_mae-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: all 85,798,656 of the backbone, 769 per class in the head.
The published batch depends on the machine (384 in the released file for FGVC); the rate is scaled to it.
Expected, published, Natural / Specialized / Structured: 59.31 / 79.68 / 53.82. Measured: unknown.
"""

_base_ = ['../_base_/recipes/vit-base-p16_mae_vtab-vpt.py', '../_base_/schedules/vpt_adamw_100e.py']
model = dict(backbone=dict(tune=['*'], trunk='train'), head=dict(init_cfg=_base_.head_init))
