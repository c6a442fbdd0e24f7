"""ViT-B/16 (85,798,656 parameters), MAE on ImageNet-1k; mean of all tokens but the class token -> LayerNorm ->
linear head.

Weights: mmpetl fetch vit-base-mae
The file has no norm for the pooled feature; it starts at identity and stays frozen, as in VPT.
"""

_base_ = './vit-base-p16_in21k.py'
model = dict(
    backbone=dict(
        out_type='avg_featmap',
        final_norm=False,
        init_cfg=dict(checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/mae_pretrain_vit_base.pth')))
