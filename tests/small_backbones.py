# SPDX-License-Identifier: Apache-2.0
"""The backbones of configs/backbones at toy size, their weights where the recipes look for them, and upstream's own."""

from pathlib import Path

import torch
from mmengine.config import ConfigDict

#: Registered type -> (arguments at toy size, key of the picture's size, width of the feature).
MM = {
    'MViT': (dict(arch=dict(embed_dims=16, num_layers=3, num_heads=2, downscale_indices=[1])), 'img_size', 32),
    'VideoMViT': (dict(arch=dict(embed_dims=16, num_layers=3, num_heads=2, downscale_indices=[1]), temporal_size=16),
                  'spatial_size', 32),
    'UniFormerV2': (dict(patch_size=8, width=32, layers=3, heads=2, n_layers=2, n_dim=32, n_head=2, return_list=[1, 2],
                         mlp_dropout=[0., 0.]), 'input_resolution', 32),
    'SwinTransformerV2': (dict(arch=dict(embed_dims=16, depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2],
                                         extra_norm_every_n_blocks=0), patch_size=2, window_size=2), 'img_size', 128),
}
_SWIN = dict(embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4)
#: Beginning of a name of timm -> arguments at toy size.
TIMM = {
    'vit': dict(patch_size=8, embed_dim=32, depth=2, num_heads=2, mlp_ratio=2.),
    'swin': _SWIN,
    'hiera': dict(embed_dim=16, num_heads=2, stages=(1, 2), q_pool=1, mask_unit_size=(2, 2), mask_unit_attn=(True, False)),
}
_HF = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, patch_size=8)
#: ``model_type`` of transformers -> arguments at toy size, where they are not ``_HF``'s.
HF = {
    'swinv2': {k: list(v) if isinstance(v, tuple) else v for k, v in _SWIN.items()},
    'vjepa2': dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, patch_size=8, mlp_ratio=2,
                   pred_hidden_size=24, pred_num_hidden_layers=1, pred_num_attention_heads=2),
}


def shrink(backbone: ConfigDict, size: int = 32) -> int:
    """Make a backbone of a config small for pictures of ``size`` px; returns the width of its feature, 0 for a type that
    is not of configs/backbones alone."""
    kind = backbone.type.split('.')[-1]
    if kind == 'TIMM':
        backbone.update(dict(TIMM[backbone.model_name.split('_')[0].removesuffix('v2')], img_size=size))
        return 32
    if kind == 'HF':
        model_type = backbone.config.model_type
        backbone.config.update(HF.get(model_type, _HF))
        if model_type == 'vjepa2':
            backbone.crop_size = size
        elif model_type == 'dinov2':
            backbone.config.update(image_size=size, mlp_ratio=2)
            backbone.config.pop('intermediate_size')
        else:
            backbone.config.image_size = size
        return 32
    if kind not in MM:
        return 0
    small, key, width = MM[kind]
    backbone.update({**small, key: size})
    return width


def by_name(backbone: ConfigDict) -> bool:
    """Whether timm or transformers get the weights by a name."""
    return 'model_name' in backbone


def stock(backbone: ConfigDict):
    """The model of timm or transformers itself, with random weights, and its feature as a function of what a backbone
    gets."""
    if backbone.type.endswith('TIMM'):
        import timm
        left = ('type', 'model_name', 'pretrained', 'checkpoint_path', 'petl', 'tune', 'init_cfg', 'trunk', 'memory')
        model = timm.create_model(backbone.model_name, num_classes=0, **{k: v for k, v in backbone.items() if k not in left})
        return model, model
    import transformers

    from mmpetl.backbones.foreign_build import TOWERS
    settings = dict(backbone.config)
    kind = settings.pop('model_type')
    more = {k: backbone[k] for k in ('crop_size', 'frames_per_clip') if k in backbone}
    built = transformers.AutoConfig.for_model(kind, **settings, **more)
    model = getattr(transformers, TOWERS[kind])(built)

    def feature(x):
        out = model(x.transpose(1, 2), skip_predictor=True) if kind == 'vjepa2' else model(
            x.transpose(1, 2) if x.dim() == 5 else x)
        if out.get('pooler_output') is not None:
            return out.pooler_output
        first = kind in ('dinov2', 'dinov3_vit', 'timesformer')
        return out.last_hidden_state[:, 0] if first else out.last_hidden_state.mean(1)

    return model, feature


def write(backbone: ConfigDict, folder: Path) -> None:
    """Random weights as an offline user has them: a file for timm, a folder of ``save_pretrained`` for transformers."""
    torch.manual_seed(0)
    model, _ = stock(backbone)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    if backbone.type.endswith('TIMM'):
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(model.state_dict(), folder / 'base.pth')
        backbone.update(pretrained=False, checkpoint_path=str(folder / 'base.pth'))
    else:
        model.save_pretrained(folder / 'base')
        backbone.model_name = str(folder / 'base')
