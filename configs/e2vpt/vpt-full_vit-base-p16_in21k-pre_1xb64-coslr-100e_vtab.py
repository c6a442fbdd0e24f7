"""Full fine-tuning by VPT's recipe, ViT-B/16 supervised on ImageNet-21k, VTAB-1k (arXiv 2203.12119).

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/e2vpt/vpt-full_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/e2vpt/vpt-full_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: all 85,798,656 of the backbone, 769 per class in the head.
The published batch depends on the machine (384 in the released file for FGVC); the rate is scaled to it.
Expected, published, Natural / Specialized / Structured: 75.88 / 83.36 / 47.64; mean of 19 65.57. Measured: unknown.
"""

_base_ = ['../_base_/recipes/vit-base-p16_in21k_vtab-vpt.py', '../_base_/schedules/vpt_adamw_100e.py']
model = dict(backbone=dict(tune=['*'], trunk='train'), head=dict(init_cfg=_base_.head_init))
