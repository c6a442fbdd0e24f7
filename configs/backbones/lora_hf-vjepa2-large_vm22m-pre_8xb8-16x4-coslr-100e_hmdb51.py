"""LoRA on q and v (arXiv 2106.09685), V-JEPA 2 ViT-L/16 of transformers, HMDB51, split 1, schedule of APT.

    mmpetl fetch hmdb51
    python tools/prepare_hmdb51.py data/hmdb51
    bash tools/dist_train.sh configs/backbones/lora_hf-vjepa2-large_vm22m-pre_8xb8-16x4-coslr-100e_hmdb51.py 8

Trainable: 838,707 (786,432 + 52,275 in the head).
No published row of this setting is known.
Expected top-1: published unknown, measured unknown.
"""

_base_ = [
    '../_base_/default_runtime_video.py', '../_base_/backbones/hf_vjepa2-large.py',
    '../_base_/datasets/hmdb51_16x4.py', '../_base_/schedules/apt_adamw_100e_lr2e-3.py'
]
model = dict(
    backbone=dict(petl=[dict(type='LoRA', rank=8, ops='qv')]),
    cls_head=dict(num_classes=51, label_smooth_eps=0.1))
