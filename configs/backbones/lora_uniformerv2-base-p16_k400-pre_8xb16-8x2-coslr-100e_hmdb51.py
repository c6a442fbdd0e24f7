"""LoRA on q and v (arXiv 2106.09685), UniFormer V2-B/16, HMDB51, split 1, schedule of APT.

    mmpetl fetch uniformerv2-base-k400 hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    bash tools/dist_train.sh configs/backbones/lora_uniformerv2-base-p16_k400-pre_8xb16-8x2-coslr-100e_hmdb51.py 8

Trainable: 334,131 (294,912 + 39,219 in the head).
No published row of this setting is known.
Expected top-1: published unknown, measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/uniformerv2-base-p16_k400.py',
    '../_base_/datasets/hmdb51_8x2.py', '../_base_/schedules/apt_adamw_100e_lr2e-3.py'
]
model = dict(
    backbone=dict(petl=[dict(type='LoRA', rank=8, ops='qv')]),
    cls_head=dict(num_classes=51, label_smooth_eps=0.1))
