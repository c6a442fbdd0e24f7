"""Full fine-tuning by VPT's recipe, Swin-B supervised on ImageNet-22k, VTAB-1k (arXiv 2203.12119).

    mmpetl fetch swin-base-in22k vtab
    python tools/train.py configs/e2vpt/vpt-full_swin-base_in22k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/e2vpt/vpt-full_swin-base_in22k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: all 86,743,224 of the backbone, 1,025 per class in the head.
The published batch depends on the machine (384 in the released file for FGVC); the rate is scaled to it.
Expected, published, Natural / Specialized / Structured: 79.10 / 86.21 / 59.65. Measured: unknown.
"""

_base_ = ['../_base_/recipes/swin-base_in22k_vtab-vpt.py', '../_base_/schedules/vpt_adamw_100e.py']
model = dict(backbone=dict(tune=['*'], trunk='train'), head=dict(init_cfg=_base_.head_init))
