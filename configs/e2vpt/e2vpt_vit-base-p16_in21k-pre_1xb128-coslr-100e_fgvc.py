"""E2VPT without pruning, ViT-B/16 supervised on ImageNet-21k, FGVC (arXiv 2307.13770).

    mmpetl fetch vit-base-in21k fgvc/CUB
    python tools/train.py configs/e2vpt/e2vpt_vit-base-p16_in21k-pre_1xb128-coslr-100e_fgvc.py \
        --cfg-options task.name=CUB
    mmpetl sweep configs/e2vpt/e2vpt_vit-base-p16_in21k-pre_1xb128-coslr-100e_fgvc.py --suite fgvc

Trainable: 92,160 in the method, 769 per class in the head (CUB: 153,800).
Prompt lengths are those of the released command list; learning rate and weight decay are searched,
by the best epoch on the validation images, as the released code does on FGVC alone.
Expected, published with pruning: mean of 5 89.22. Measured: unknown.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/vit-base-p16_in21k.py', '../_base_/datasets/fgvc.py',
    '../_base_/schedules/vpt_sgd_100e_fgvc.py'
]
model = dict(
    backbone=dict(petl=[dict(type='E2VPT', num_tokens=5, num_kv_tokens=5, drop_rate=0.1, drop_per_sample=True)]),
    head=dict(init_cfg=_base_.head_init))
train_dataloader = dict(batch_size=128)
sweep = dict(select='best')
