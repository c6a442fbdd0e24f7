"""AdaLoRA (arXiv 2303.10512), ranks 12 to 8 on average, ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/adalora_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/adalora_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 1,991,520 in the method at the start, two thirds of them in the end, 769 per class in the head.
Expected: unknown, the paper has no VTAB-1k table; schedule of the neighbouring recipes. Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit-drop_vtab.py'
model = dict(backbone=dict(petl=[dict(type='AdaLoRA', rank=12)]))
custom_hooks = [
    dict(type='mmpetl.AdapterHook'), dict(type='mmpetl.GradientAuditHook'),
    dict(type='mmpetl.AdaLoRAHook', target_rank=8, warm_up=0.1, final=0.3, interval=1)
]
