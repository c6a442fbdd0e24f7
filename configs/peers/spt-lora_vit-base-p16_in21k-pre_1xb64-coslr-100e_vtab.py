"""SPT-LoRA (arXiv 2303.08566), 0.4 million where the loss is sensitive, ViT-B/16 supervised on ImageNet-21k, VTAB-1k.

    mmpetl fetch vit-base-in21k vtab
    python tools/train.py configs/peers/spt-lora_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py \
        --cfg-options task.name=kitti
    mmpetl sweep configs/peers/spt-lora_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab.py --suite vtab

Trainable: 280,000 in the method, 122,112 in biases and norms, 769 per class in the head: a setting of the released
code, with its rate, weight decay and batch; its runs try 0.2 to 1.0 million for every task.
Expected: unknown, no table of the paper was read for this recipe; schedule of the neighbouring recipes.
Measured: unknown.
"""

_base_ = '../_base_/recipes/petl-vit_vtab.py'
model = dict(
    backbone=dict(petl=[dict(type='SPT', budget=280_000, drop_rate=0.1)], tune=['*bias', '*ln*']))
custom_hooks = [
    dict(type='mmpetl.AdapterHook'), dict(type='mmpetl.GradientAuditHook'), dict(type='mmpetl.ChoiceHook', batches=8)]
