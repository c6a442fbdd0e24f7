"""VPT-deep, ViT-B/16, MoCo v3, VTAB-1k (arXiv 2203.12119).

    mmpetl fetch vit-base-mocov3 vtab
    python tools/train.py configs/e2vpt/vpt-deep_vit-base-p16_mocov3-pre_1xb128-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/e2vpt/vpt-deep_vit-base-p16_mocov3-pre_1xb128-coslr-100e_vtab.py --suite vtab

Trainable with P prompts: 9,216 P in the method, 769 per class in the head.
Prompt lengths per task are not published; 10 prompts here; a batch has 128 images below 100 prompts, else 64.
Learning rate and weight decay are searched.
Expected, published, Natural / Specialized / Structured: 70.27 / 83.04 / 42.38. Measured: unknown.
"""

_base_ = ['../_base_/recipes/vit-base-p16_mocov3_vtab-vpt.py', '../_base_/schedules/vpt_sgd_100e.py']
model = dict(
    backbone=dict(petl=[dict(type='VPT', num_tokens=10, deep=True, drop_rate=0.1, drop_per_sample=True)]),
    head=dict(init_cfg=_base_.head_init))
train_dataloader = dict(batch_size=128)
