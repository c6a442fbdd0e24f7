"""LoRA on Video Swin-B, Something-Something V2 (V-PETL, arXiv 2210.00788, main table).

    mmpetl fetch video-swin-base ssv2
    python tools/prepare_ssv2.py data/ssv2
    python tools/train.py configs/vpetl/lora_video-swin-base_k400-in22k-pre_1xb16-8x4-coslr-90e_ssv2.py

Trainable: 948,398 (770,048 + 178,350 in the head).
Stride and epochs are guesses: no command for this data set is published.
No code of this row is published, and the published count (0.75 M) fits no rank; this is the nearest, on q and v.
Expected top-1 in %: published 38.34 (as quoted by the V-PETL benchmark), measured unknown.
"""

_base_ = '../_base_/recipes/vpetl_ssv2.py'
model = dict(backbone=dict(petl=[dict(type='LoRA', rank=16, alpha=32, ops='qv')]), cls_head=dict(num_classes=174))
