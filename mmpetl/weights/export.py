"""Merged backbones under the names of other libraries: timm, Hugging Face, OpenAI / open_clip, the original
repositories.

The inverse of :mod:`mmpetl.weights.convert`. A key that the other library has no name for is an error, never dropped.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from .rename import Rules, State, depth, mapped
from .report import Report, shorten
from .swin import from_mmpretrain as swin_canonical

_WB = r'(weight|bias)'
_VIT = r'layers\.(\d+)\.'
_SWIN = r'layers\.(\d+)\.blocks\.(\d+)\.'
_MAE = r'blocks\.(\d+)\.'

#: (architecture, library) -> key table. ``@`` in a new name: the tensor is split into query, key and value.
TABLES: dict[tuple[str, str], Rules] = {
    ('vit', 'timm'):
    ((r'cls_token|pos_embed', r'\g<0>'), (r'patch_embed\.projection\.' + _WB, r'patch_embed.proj.\1'),
     (r'pre_norm\.' + _WB, r'norm_pre.\1'), (_VIT + r'ln([12])\.' + _WB, r'blocks.\1.norm\2.\3'),
     (_VIT + r'attn\.(qkv|proj)\.' + _WB, r'blocks.\1.attn.\2.\3'),
     (_VIT + r'attn\.gamma1\.weight', r'blocks.\1.ls1.gamma'), (_VIT + r'ffn\.gamma2\.weight', r'blocks.\1.ls2.gamma'),
     (_VIT + r'ffn\.layers\.0\.0\.' + _WB, r'blocks.\1.mlp.fc1.\2'), (_VIT + r'ffn\.layers\.1\.' + _WB,
                                                                      r'blocks.\1.mlp.fc2.\2'),
     (r'ln1\.' + _WB, r'norm.\1'), (r'ln2\.' + _WB, r'fc_norm.\1'), (r'head\.' + _WB, r'\g<0>')),
    ('vit', 'hf'):
    ((r'cls_token', 'embeddings.cls_token'), (r'pos_embed', 'embeddings.position_embeddings'),
     (r'patch_embed\.projection\.' + _WB, r'embeddings.patch_embeddings.projection.\1'),
     (_VIT + r'attn\.qkv\.' + _WB, r'encoder.layer.\1.attention.attention.@.\2'),
     (_VIT + r'attn\.proj\.' + _WB, r'encoder.layer.\1.attention.output.dense.\2'),
     (_VIT + r'ffn\.layers\.0\.0\.' + _WB, r'encoder.layer.\1.intermediate.dense.\2'),
     (_VIT + r'ffn\.layers\.1\.' + _WB, r'encoder.layer.\1.output.dense.\2'), (_VIT + r'ln1\.' + _WB,
                                                                               r'encoder.layer.\1.layernorm_before.\2'),
     (_VIT + r'ln2\.' + _WB,
      r'encoder.layer.\1.layernorm_after.\2'), (r'ln1\.' + _WB, r'layernorm.\1'), (r'head\.' + _WB, r'classifier.\1')),
    ('clip', 'openai'):
    ((r'cls_token', 'class_embedding'), (r'pos_embed', 'positional_embedding'),
     (r'patch_embed\.projection\.weight', 'conv1.weight'), (r'pre_norm\.' + _WB, r'ln_pre.\1'),
     (_VIT + r'ln([12])\.' + _WB, r'transformer.resblocks.\1.ln_\2.\3'), (_VIT + r'attn\.qkv\.' + _WB,
                                                                          r'transformer.resblocks.\1.attn.in_proj_\2'),
     (_VIT + r'attn\.proj\.' + _WB, r'transformer.resblocks.\1.attn.out_proj.\2'),
     (_VIT + r'ffn\.layers\.0\.0\.' + _WB, r'transformer.resblocks.\1.mlp.c_fc.\2'),
     (_VIT + r'ffn\.layers\.1\.' + _WB, r'transformer.resblocks.\1.mlp.c_proj.\2'), (r'ln1\.' + _WB,
                                                                                     r'ln_post.\1'), (r'proj', 'proj')),
    ('clip', 'hf'):
    ((r'cls_token', 'vision_model.embeddings.class_embedding'), (r'pos_embed',
                                                                 'vision_model.embeddings.position_embedding.weight'),
     (r'patch_embed\.projection\.weight', 'vision_model.embeddings.patch_embedding.weight'),
     (r'pre_norm\.' + _WB, r'vision_model.pre_layrnorm.\1'), (_VIT + r'ln([12])\.' + _WB,
                                                              r'vision_model.encoder.layers.\1.layer_norm\2.\3'),
     (_VIT + r'attn\.qkv\.' + _WB, r'vision_model.encoder.layers.\1.self_attn.@_proj.\2'),
     (_VIT + r'attn\.proj\.' + _WB, r'vision_model.encoder.layers.\1.self_attn.out_proj.\2'),
     (_VIT + r'ffn\.layers\.0\.0\.' + _WB,
      r'vision_model.encoder.layers.\1.mlp.fc1.\2'), (_VIT + r'ffn\.layers\.1\.' + _WB,
                                                      r'vision_model.encoder.layers.\1.mlp.fc2.\2'),
     (r'ln1\.' + _WB, r'vision_model.post_layernorm.\1'), (r'proj', 'visual_projection.weight')),
    ('videomae', 'original'): ((r'patch_embed\.projection\.' + _WB, r'patch_embed.proj.\1'),
                               (_MAE + r'(norm[12]\.(?:weight|bias)|attn\..*|gamma_[12])',
                                r'\g<0>'), (_MAE + r'mlp\.layers\.0\.0\.' + _WB, r'blocks.\1.mlp.fc1.\2'),
                               (_MAE + r'mlp\.layers\.1\.' + _WB,
                                r'blocks.\1.mlp.fc2.\2'), (r'(norm|fc_norm|head)\.' + _WB, r'\g<0>')),
    ('videomae', 'hf'):
    ((r'patch_embed\.projection\.' + _WB, r'videomae.embeddings.patch_embeddings.projection.\1'),
     (_MAE + r'norm1\.' + _WB, r'videomae.encoder.layer.\1.layernorm_before.\2'),
     (_MAE + r'norm2\.' + _WB, r'videomae.encoder.layer.\1.layernorm_after.\2'),
     (_MAE + r'attn\.qkv\.weight', r'videomae.encoder.layer.\1.attention.attention.@.weight'),
     (_MAE + r'attn\.([qv])_bias', r'videomae.encoder.layer.\1.attention.attention.\2_bias'),
     (_MAE + r'attn\.proj\.' + _WB,
      r'videomae.encoder.layer.\1.attention.output.dense.\2'), (_MAE + r'mlp\.layers\.0\.0\.' + _WB,
                                                                r'videomae.encoder.layer.\1.intermediate.dense.\2'),
     (_MAE + r'mlp\.layers\.1\.' + _WB, r'videomae.encoder.layer.\1.output.dense.\2'),
     (r'norm\.' + _WB, r'videomae.layernorm.\1'), (r'fc_norm\.' + _WB, r'\g<0>'), (r'head\.' + _WB, r'classifier.\1')),
    ('swin', 'original'): ((r'(patch_embed|layers|norm|head|absolute_pos_embed)(\..*)?', r'\g<0>'), ),
    ('swin', 'timm'): ((r'(patch_embed|norm)\..*', r'\g<0>'), (_SWIN + r'(.*)', r'\g<0>'),
                       (r'layers\.\d+\.downsample\..*', r'\g<0>'), (r'head\.' + _WB, r'head.fc.\1')),
    ('swin', 'hf'): ((r'patch_embed\.proj\.' + _WB, r'swin.embeddings.patch_embeddings.projection.\1'),
                     (r'patch_embed\.norm\.' + _WB,
                      r'swin.embeddings.norm.\1'), (r'absolute_pos_embed', 'swin.embeddings.position_embeddings'),
                     (_SWIN + r'norm1\.' + _WB, r'swin.encoder.layers.\1.blocks.\2.layernorm_before.\3'),
                     (_SWIN + r'norm2\.' + _WB, r'swin.encoder.layers.\1.blocks.\2.layernorm_after.\3'),
                     (_SWIN + r'attn\.qkv\.' + _WB, r'swin.encoder.layers.\1.blocks.\2.attention.self.@.\3'),
                     (_SWIN + r'attn\.proj\.' + _WB, r'swin.encoder.layers.\1.blocks.\2.attention.output.dense.\3'),
                     (_SWIN + r'attn\.relative_position_(bias_table|index)',
                      r'swin.encoder.layers.\1.blocks.\2.attention.self.relative_position_\3'),
                     (_SWIN + r'mlp\.fc1\.' + _WB, r'swin.encoder.layers.\1.blocks.\2.intermediate.dense.\3'),
                     (_SWIN + r'mlp\.fc2\.' + _WB,
                      r'swin.encoder.layers.\1.blocks.\2.output.dense.\3'), (r'layers\.(\d+)\.downsample\.(.*)',
                                                                             r'swin.encoder.layers.\1.downsample.\2'),
                     (r'norm\.' + _WB, r'swin.layernorm.\1'), (r'head\.' + _WB, r'classifier.\1')),
    ('video_swin', 'original'): ((r'(patch_embed|layers|norm|head)\..*', r'\g<0>'), ),
}
TABLES['clip', 'timm'] = TABLES['vit', 'timm']
_DINOV2 = (
    (_VIT + r'ln([12])\.' + _WB, r'encoder.layer.\1.norm\2.\3'),
    (_VIT + r'attn\.gamma1\.weight', r'encoder.layer.\1.layer_scale1.lambda1'),
    (_VIT + r'ffn\.gamma2\.weight', r'encoder.layer.\1.layer_scale2.lambda1'),
    (_VIT + r'ffn\.layers\.0\.0\.' + _WB, r'encoder.layer.\1.mlp.fc1.\2'),
    (_VIT + r'ffn\.layers\.1\.' + _WB, r'encoder.layer.\1.mlp.fc2.\2'))
TABLES['dinov2', 'hf'] = (*_DINOV2, *TABLES['vit', 'hf'])


def libraries(arch: str) -> list[str]:
    """Libraries whose names are known for an architecture."""
    return sorted(library for known, library in TABLES if known == arch)


def export_names(state: Mapping[str, torch.Tensor], arch: str, library: str) -> State:
    """Rename a merged backbone for another library.

    Args:
        state (Mapping): Trunk under mmpretrain's or mmaction2's names, without prefix and without ``petl.*``. May hold
            ``head.weight`` and ``head.bias`` (classes, C) and, for CLIP, ``proj`` (C, embedding).
        arch (str): 'vit', 'clip', 'swin', 'videomae' or 'video_swin'.
        library (str): 'timm', 'hf', 'openai' or 'original'. 'hf' means the names of files on the hub, which every
            version of transformers opens.

    Returns:
        dict: Tensors under the library's names; ViT with layer scale in 'hf' becomes DINOv2.

    Raises:
        ValueError: No table for that pair, or a key that the library has no name for.
    """
    if (arch, library) not in TABLES:
        raise ValueError(f'no export of {arch!r} to {library!r}; known for it: {", ".join(libraries(arch)) or "none"}')
    unmerged = [key for key in state if key.startswith('petl.')]
    if unmerged:
        raise ValueError(f'{unmerged[0]}: merge the adapter into the backbone before exporting it')
    state = _prepare(dict(state), arch, library)
    table = 'dinov2' if (arch, library) == ('vit', 'hf') and 'layers.0.attn.gamma1.weight' in state else arch
    compiled = [(re.compile(pattern), new) for pattern, new in TABLES[table, library]]
    renamed: State = {}
    strays = []
    for key, tensor in state.items():
        hit = next(((match, new) for pattern, new in compiled if (match := pattern.fullmatch(key))), None)
        if hit is None:
            strays.append(key)
            continue
        renamed.update(_split(hit[0].expand(hit[1]), tensor))
    if strays:
        raise ValueError(f'{library} has no name for {shorten(strays)} of {arch!r}')
    return {key: tensor.contiguous() for key, tensor in renamed.items()}


def _split(name: str, tensor: torch.Tensor) -> State:
    if '@' not in name:
        return {name: tensor}
    words = ('q', 'k', 'v') if '@_proj' in name else ('query', 'key', 'value')
    return {name.replace('@', word): part for word, part in zip(words, tensor.chunk(3))}


def _prepare(state: State, arch: str, library: str) -> State:
    """Bring order and shapes to the library's before keys are renamed; drop what it computes itself."""
    if arch == 'swin':
        state = swin_canonical(state, Report('mmpretrain-swin', arch))
        if library == 'timm':
            state = _late_merging({
                key: tensor
                for key, tensor in state.items() if not key.endswith('relative_position_index')
            })
    if arch == 'video_swin':
        last = depth(state, 'layers') - 1
        state = {re.sub(rf'^norm{last}\.', 'norm.', key): tensor for key, tensor in state.items()}
    if arch == 'videomae':
        state.pop('pos_embed', None)  # the fixed table, which the others build as well
    if arch == 'clip' and library in ('openai', 'hf'):
        mapped(state, 'cls_token', lambda tensor: tensor.flatten())
        mapped(state, 'pos_embed', lambda tensor: tensor[0])
        if library == 'hf':
            mapped(state, 'proj', lambda tensor: tensor.t())
    return state


def _late_merging(state: State) -> State:
    return {
        re.sub(r'^layers\.(\d+)\.downsample', lambda match: f'layers.{int(match.group(1)) + 1}.downsample', key): tensor
        for key, tensor in state.items()
    }


def hf_config(state: Mapping[str, torch.Tensor],
              arch: str,
              num_heads: int,
              eps: float = 1e-6,
              **more: Any) -> dict[str, Any]:
    """The ``config.json`` with which transformers opens the result of ``export_names(state, arch, 'hf')``.

    Args:
        state (Mapping): As for :func:`export_names`.
        arch (str): 'vit', 'clip' or 'videomae'.
        num_heads (int): Attention heads per block, which no tensor tells.
        eps (float): Epsilon of the LayerNorms; 1e-5 for CLIP.
        **more: Entries that are added or replaced, such as ``id2label``; VideoMAE needs ``image_size`` and
            ``num_frames``.

    Transformers builds VideoMAE's norm after pooling with epsilon 1e-5 whatever the config says: logits differ by about
    1e-5 of their size from a model with 1e-6.

    Raises:
        ValueError: Another architecture.
    """
    kernel = state['patch_embed.projection.weight']
    stem = 'blocks' if arch == 'videomae' else 'layers'
    fc1 = f'{stem}.0.mlp.layers.0.0.weight' if arch == 'videomae' else f'{stem}.0.ffn.layers.0.0.weight'
    config: dict[str, Any] = dict(
        hidden_size=kernel.shape[0],
        num_hidden_layers=depth(state, stem),
        num_attention_heads=num_heads,
        intermediate_size=state[fc1].shape[0],
        patch_size=kernel.shape[-1],
        num_channels=kernel.shape[1],
        layer_norm_eps=eps)
    if arch == 'videomae':
        config |= dict(
            model_type='videomae',
            architectures=['VideoMAEForVideoClassification'],
            tubelet_size=kernel.shape[2],
            use_mean_pooling='fc_norm.weight' in state,
            qkv_bias='blocks.0.attn.q_bias' in state)
    elif arch == 'clip':
        config |= dict(
            model_type='clip_vision_model', architectures=['CLIPVisionModelWithProjection'], hidden_act='quick_gelu')
        config |= dict(projection_dim=state['proj'].shape[1]) if 'proj' in state else {}
    elif arch == 'vit' and 'layers.0.attn.gamma1.weight' in state:
        config |= dict(model_type='dinov2', architectures=['Dinov2Model'], use_mask_token=False,
                       mlp_ratio=config.pop('intermediate_size') // kernel.shape[0])
    elif arch == 'vit':
        config |= dict(
            model_type='vit', architectures=['ViTForImageClassification'], qkv_bias='layers.0.attn.qkv.bias' in state)
    else:
        raise ValueError(f'no transformers config for {arch!r}; known: clip, videomae, vit')
    if arch != 'videomae':
        config['image_size'] = round((state['pos_embed'].shape[1] - 1) ** 0.5) * kernel.shape[-1]
    if 'head.weight' in state:
        config['num_labels'] = state['head.weight'].shape[0]
    return config | more
