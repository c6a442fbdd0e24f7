"""ViT-B/16 (85,798,656 parameters), MAE on ImageNet-1k; mean of all tokens but the class token -> LayerNorm -> linear
head.

Weights: https://dl.fbaipublicfiles.com/mae/pretrain/mae_pretrain_vit_base.pth (md5 begins 8cad7c), put into
    ~/.cache/mmpetl/.
The file has no norm for the pooled feature; it starts at identity and stays frozen, as in VPT.
"""

model = dict(
    type='ImageClassifier',
    backbone=dict(
        type='mmpetl.VisionTransformer',
        arch='base',
        img_size=224,
        patch_size=16,
        norm_cfg=dict(type='LN', eps=1e-6),
        out_type='avg_featmap',
        final_norm=False,
        petl=[],
        init_cfg=dict(type='Pretrained', checkpoint='{{$MMPETL_CACHE:~/.cache/mmpetl}}/mae_pretrain_vit_base.pth')),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=768, loss=dict(type='CrossEntropyLoss')))
