"""VPT-shallow, ViT-B/16 supervised on ImageNet-21k, VTAB-1k (arXiv 2203.12119).

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/e2vpt/vpt-shallow_vit-base-p16_in21k-pre_1xb128-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/e2vpt/vpt-shallow_vit-base-p16_in21k-pre_1xb128-coslr-100e_vtab.py --suite vtab

Trainable with P prompts: 768 P in the method, 769 per class in the head.
Prompt lengths per task are not published; 50 prompts here. Learning rate and weight decay are searched.
Expected, published, Natural / Specialized / Structured: 76.81 / 79.66 / 46.98; mean of 19 64.85. Measured: unknown.
"""

_base_ = ['../_base_/recipes/vit-base-p16_in21k_vtab-vpt.py', '../_base_/schedules/vpt_sgd_100e.py']
model = dict(
    backbone=dict(petl=[dict(type='VPT', num_tokens=50, deep=False)]),
    head=dict(init_cfg=_base_.head_init))
train_dataloader = dict(batch_size=128)
