"""APT with 400 tokens per block and no factors on VideoMAE ViT-S, Something-Something V2 (APT, arXiv 2403.06978).

    mmpetl fetch videomae-small-ssv2 ssv2
    python tools/prepare_ssv2.py data/ssv2
    bash tools/dist_train.sh configs/apt/apt-400-plain_videomae-small_ssv2-pre_6xb16-16-coslr-100e_ssv2.py 6

Trainable: 682,158 (614,400 + 67,758 in norm and head).
Recipe: the published script (6 GPUs; mixed precision by --amp). The script starts from weights of Something-Something
V2, the published list of models says Kinetics-400.
Expected top-1: published unknown (the paper's tables are not at hand), measured unknown.
"""

_base_ = ['../_base_/recipes/videomae-small_ssv2.py', '../_base_/schedules/apt_adamw_100e.py']
model = dict(
    backbone=dict(petl=[dict(type='APT', num_tokens=400, drop_rate=0.1, reparam=None)]),
    cls_head=dict(num_classes=174, label_smooth_eps=0.1))
train_dataloader = dict(batch_size=16)
