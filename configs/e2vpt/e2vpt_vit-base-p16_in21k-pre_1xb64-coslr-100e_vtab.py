"""E2VPT without pruning, ViT-B/16 supervised on ImageNet-21k, VTAB-1k (arXiv 2307.13770).

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/e2vpt/e2vpt_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/e2vpt/e2vpt_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable with P prompts and K key/value prompts: 9,216 (P + K) in the method, 769 per class in the head.
Prompt lengths per task are those of the released command list; learning rate and weight decay are searched.
Expected, published with pruning, Natural / Specialized / Structured: 80.01 / 84.43 / 57.39; mean of 19 71.42, mean of
3 groups 73.94. Measured: unknown.
"""

_base_ = [
    '../_base_/recipes/vit-base-p16_in21k_vtab-vpt.py', '../_base_/schedules/vpt_sgd_100e.py',
    '../_base_/lengths/e2vpt_vtab.py'
]
model = dict(
    backbone=dict(petl=[dict(type='E2VPT', num_tokens=10, num_kv_tokens=5, drop_rate=0.1, drop_per_sample=True)]),
    head=dict(init_cfg=_base_.head_init))
