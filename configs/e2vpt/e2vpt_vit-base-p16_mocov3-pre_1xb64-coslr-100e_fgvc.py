"""E2VPT without pruning, ViT-B/16, MoCo v3, FGVC (arXiv 2307.13770).

    mmpetl fetch vit-base-mocov3 fgvc/CUB
    python tools/train.py configs/e2vpt/e2vpt_vit-base-p16_mocov3-pre_1xb64-coslr-100e_fgvc.py \
        --cfg-options task.name=CUB
    mmpetl sweep configs/e2vpt/e2vpt_vit-base-p16_mocov3-pre_1xb64-coslr-100e_fgvc.py --suite fgvc

Trainable: 92,160 in the method, 769 per class in the head (CUB: 153,800).
Prompt lengths are those of the released command list; learning rate and weight decay are searched,
by the best epoch on the validation images, as the released code does on FGVC alone.
Expected: unknown (a command is released, no number of this backbone was found). Measured: unknown.
"""

_base_ = [
    '../_base_/default_runtime.py', '../_base_/backbones/vit-base-p16_mocov3.py', '../_base_/datasets/fgvc.py',
    '../_base_/schedules/vpt_sgd_100e_fgvc.py'
]
model = dict(
    backbone=dict(petl=[dict(type='E2VPT', num_tokens=5, num_kv_tokens=5, drop_rate=0.1, drop_per_sample=True)]),
    head=dict(init_cfg=_base_.head_init))
sweep = dict(select='best')
