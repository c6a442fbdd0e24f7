"""VPT-deep, ViT-B/16 supervised on ImageNet-21k, FGVC (arXiv 2203.12119).

    mmpetl fetch vit-base-in21k fgvc/CUB
    python tools/train.py configs/e2vpt/vpt-deep_vit-base-p16_in21k-pre_1xb128-coslr-100e_fgvc.py \
        --cfg-options task.name=CUB
    mmpetl sweep configs/e2vpt/vpt-deep_vit-base-p16_in21k-pre_1xb128-coslr-100e_fgvc.py --suite fgvc

Trainable with P prompts: 9,216 P in the method, 769 per class in the head.
Prompt lengths per data set are not published; 10 prompts here. Learning rate and weight decay are searched.
Expected, published: mean of 5 89.11. Measured: unknown.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/vit-base-p16_in21k.py', '../_base_/datasets/fgvc.py',
    '../_base_/schedules/vpt_sgd_100e_fgvc.py'
]
model = dict(
    backbone=dict(petl=[dict(type='VPT', num_tokens=10, deep=True, drop_rate=0.1, drop_per_sample=True)]),
    head=dict(init_cfg=_base_.head_init))
train_dataloader = dict(batch_size=128)
