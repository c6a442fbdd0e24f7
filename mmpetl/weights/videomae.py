# SPDX-License-Identifier: Apache-2.0
"""VideoMAE under mmaction2's names: original pre-training and fine-tuning files, Hugging Face, AdaptFormer's and
V-PETL's split projections, and image transformers inflated in time.
"""

from typing import Any

import torch
from einops import repeat

from .arch import Arch, Export, Format, has
from .match_report import Report
from .rename import DECODER, HEAD, PETL_NAMES, Ignored, Rules, State, depth, relabel, rename
from .resize import resize_grid, resize_volume, sinusoid, square
from .vit import LORA_HF4, fold_layer_scale, take_registers

_WB = r'(weight|bias)'
_B = r'blocks\.(\d+)\.'
ORIGINAL: Rules = (
    (r'pos_embed', 'pos_embed'),
    (r'patch_embed\.proj\.' + _WB, r'patch_embed.projection.\1'),
    (_B + r'norm([12])\.' + _WB, r'blocks.\1.norm\2.\3'),
    (_B + r'attn\.(qkv\.weight|qkv\.bias|q_bias|v_bias|proj\.weight|proj\.bias)', r'blocks.\1.attn.\2'),
    # AdaptFormer's and V-PETL's split projections.
    (_B + r'attn\.([qkv])(?:_proj)?\.weight', r'blocks.\1.attn.qkv.weight@\2'),
    (_B + r'attn\.([qkv])(?:_proj)?\.bias', r'blocks.\1.attn.\2_bias'),
    (_B + r'(?:mlp\.)?fc1\.' + _WB, r'blocks.\1.mlp.layers.0.0.\2'),
    (_B + r'(?:mlp\.)?fc2\.' + _WB, r'blocks.\1.mlp.layers.1.\2'),
    (_B + r'gamma_([12])', r'blocks.\1.gamma_\2'),
    (r'norm\.' + _WB, r'norm.\1'),
    # Norm behind the pooling.
    (r'(?:fc_norm|head_norm)\.' + _WB, r'fc_norm.\1'),
    (r'head\.' + _WB, r'+head.\1'),
)
IGNORED: Ignored = ((r'(decoder|encoder_to_decoder|mask_token).*', DECODER), (r'(head|fc)\..*', HEAD), *PETL_NAMES)

_HF_LAYER = r'encoder\.layers?\.(\d+)\.'
HF: Rules = (
    (r'embeddings\.patch_embeddings\.projection\.' + _WB, r'patch_embed.projection.\1'),
    (_HF_LAYER + r'layernorm_before\.' + _WB, r'blocks.\1.norm1.\2'),
    (_HF_LAYER + r'layernorm_after\.' + _WB, r'blocks.\1.norm2.\2'),
    (_HF_LAYER + r'attention\.(?:attention\.)?(q|k|v)(?:uery|ey|alue|_proj)\.weight', r'blocks.\1.attn.qkv.weight@\2'),
    (_HF_LAYER + r'attention\.(?:attention\.)?(q|k|v)(?:uery\.|ey\.|alue\.|_proj\.|_)bias', r'blocks.\1.attn.\2_bias'),
    (_HF_LAYER + r'attention\.(?:output\.dense|o_proj)\.' + _WB, r'blocks.\1.attn.proj.\2'),
    (_HF_LAYER + r'(?:intermediate\.dense|mlp\.fc1)\.' + _WB, r'blocks.\1.mlp.layers.0.0.\2'),
    (_HF_LAYER + r'(?:output\.dense|mlp\.fc2)\.' + _WB, r'blocks.\1.mlp.layers.1.\2'),
    (r'layernorm\.' + _WB, r'norm.\1'),
)
# The position table of the hub's files is the fixed one, which the backbone builds.
HF_IGNORED: Ignored = ((r'embeddings\.(mask_token|position_embeddings|position_ids)', DECODER), *IGNORED)

_KEY_BIAS = 'bias of the keys: adds one constant to all logits of a query, no effect'


def from_original(state: State, report: Report) -> State:
    """Official pre-training (prefix ``encoder.`` removed) and fine-tuning files, and those with split projections."""
    return split_bias(rename(state, ORIGINAL, IGNORED, report), report)


def from_hf(state: State, report: Report) -> State:
    """Hugging Face VideoMAE; its classifier's ``fc_norm`` stands beside the backbone and comes in with it."""
    return split_bias(rename(state, (*HF, *ORIGINAL), HF_IGNORED, report), report)


def from_mmaction(state: State, report: Report) -> State:
    """mmaction2's own names."""
    return dict(state)


def split_bias(state: State, report: Report) -> State:
    """Keep the query and value parts of a fused bias; mmaction2's attention has no key bias, and none is needed."""
    for key in [key for key in state if key.endswith('attn.qkv.bias')]:
        # In this order all files fuse them.
        query, _, value = state.pop(key).chunk(3)
        stem = key.removesuffix('qkv.bias')
        # Clones: views would keep the whole fused bias, and be stored with it.
        state[f'{stem}q_bias'], state[f'{stem}v_bias'] = query.clone(), value.clone()
        report.left_out[f'{stem}qkv.bias (keys)'] = _KEY_BIAS
    for key in [key for key in state if key.endswith('attn.k_bias')]:
        report.left_out[key] = _KEY_BIAS
        del state[key]
    return state


_FROM_VIT: Rules = (
    (r'layers\.(\d+)\.ln([12])\.' + _WB, r'blocks.\1.norm\2.\3'),
    (r'layers\.(\d+)\.attn\.gamma1\.weight', r'blocks.\1.gamma_1'),
    (r'layers\.(\d+)\.ffn\.gamma2\.weight', r'blocks.\1.gamma_2'),
    (r'layers\.(\d+)\.attn\.(.*)', r'blocks.\1.attn.\2'),
    (r'layers\.(\d+)\.ffn\.(.*)', r'blocks.\1.mlp.\2'),
)


def inflate(state: State, shapes: dict[str, tuple[int, ...]], grid: tuple[int, ...] | None, report: Report) -> State:
    """Turn a canonical image transformer into a video one.

    The patch kernel is repeated over the tubelet and divided by its length, the position grid is repeated over time,
    the final norm becomes the norm after pooling. Exact for the blocks; approximate in that the class token is dropped.

    Args:
        state (dict): Canonical image tensors (mmpretrain's names).
        shapes (dict): Shapes of the target; must not be empty.
        grid (tuple | None): Target grid (T, H, W).
        report (Report): Receives what changes.

    Raises:
        ValueError: No target shapes, a grid that cannot be told, or weights with a norm before the blocks (CLIP), for
            which mmaction2's backbone has no place.
    """
    kernel = 'patch_embed.projection.weight'
    target = shapes.get(kernel)
    if target is None or len(target) != 5:
        raise ValueError(f'{kernel}: to inflate image weights give the shapes of the video backbone, of '
                         'mmpetl convert by --config')
    if 'pre_norm.weight' in state:
        # Without this norm CLIP's features are lost: on photographs their centred cosine to the true ones is -0.01
        # (ViT-B/16).
        raise ValueError(
            "pre_norm.weight: CLIP normalises tokens before the first block, for which mmaction2's video backbone has "
            "no "
            'place; inflate weights without it (supervised ViT, MAE, DINOv2)')
    take_registers(state, report)
    old = tuple(state[kernel].shape)
    # Over a tubelet of equal frames the sum is the image's value again.
    state[kernel] = repeat(state[kernel], 'o i h w -> o i t h w', t=target[2]) / target[2]
    report.reshaped.append((kernel, old, tuple(state[kernel].shape), 'repeated over time, divided by its length'))
    if state.pop('cls_token', None) is not None:
        report.left_out['cls_token'] = 'the video backbone has no class token'
        # Its first row is the class token's.
        state['pos_embed'] = state['pos_embed'][:, 1:]
        report.notes.append('inflated from images: class token dropped, features are averaged over all tokens')
    if 'pos_embed' in shapes:
        _inflate_positions(state, shapes['pos_embed'], grid, report)
    for part in ('weight', 'bias'):
        final = state.pop(f'ln1.{part}', None)
        pooled = state.pop(f'ln2.{part}', None)
        # A file has the norm of all tokens or that of their mean; the video backbone norms the mean.
        final = final if pooled is None else pooled
        if final is not None:
            state[f'fc_norm.{part}' if f'fc_norm.{part}' in shapes else f'norm.{part}'] = final
    if not any('gamma_1' in key for key in shapes):
        fold_layer_scale(state, report)
    return split_bias(relabel(state, _FROM_VIT), report)


def _inflate_positions(state: State, shape: tuple[int, ...], grid: tuple[int, ...] | None, report: Report) -> None:
    """Image positions (1, H W, C) resized to the grid of a frame and repeated for every step of time, in place."""
    table = state['pos_embed']
    side = square(table.shape[1])
    if side is None:
        raise ValueError(f'pos_embed: {table.shape[1]} positions of the image model form no square grid')
    if grid is None and shape[1] % table.shape[1] == 0:
        grid = (shape[1] // table.shape[1], side, side)
    if grid is None or grid[0] * grid[1] * grid[2] != shape[1]:
        raise ValueError(
            f'pos_embed: {shape[1]} video positions; give grid=(T, H, W) to inflate a {side} x {side} image grid')
    state['pos_embed'] = repeat(resize_grid(table, (side, side), (grid[1], grid[2])), '1 n c -> 1 (t n) c', t=grid[0])
    report.reshaped.append(('pos_embed', tuple(table.shape), tuple(state['pos_embed'].shape),
                            f'resized to {grid[1:]}, repeated over time'))


def to_target(state: State, shapes: dict[str, tuple[int, ...]], grid: tuple[int, ...] | None, report: Report) -> State:
    """Adapt canonical tensors, of images or videos, to one mmaction2 ``VisionTransformer`` (VideoMAE)."""
    # The common form of images has layers, that of videos blocks.
    if any(key.startswith('layers.') for key in state):
        return inflate(state, shapes, grid, report)
    if shapes and not any('gamma_1' in key for key in shapes):
        _fold_gammas(state, report)
    shape = shapes.get('pos_embed')
    if shape is None:
        return state
    table = state.get('pos_embed')
    if table is None:
        table = _published_table(shapes, grid)
        report.generated['pos_embed'] = 'fixed sine-cosine table'
    # A fixed table needs no resizing: it is made anew for the other length.
    if tuple(table.shape) != shape and grid is None and _is_sinusoid(table):
        state['pos_embed'] = sinusoid(shape[1], shape[2])
        report.generated['pos_embed'] = 'fixed sine-cosine table'
    elif tuple(table.shape) != shape:
        source, target = _grids(table.shape[1], shape[1], grid, _published_grid(shapes))
        state['pos_embed'] = resize_volume(table, source, target)
        report.reshaped.append(('pos_embed', tuple(table.shape), shape,
                                f'grid {source} -> {target}, bicubic over space, linear over time'))
    else:
        state['pos_embed'] = table
    return state


def _published_grid(shapes: dict[str, tuple[int, ...]]) -> tuple[int, int, int] | None:
    """Grid (T, H, W) that the published models were pre-trained with, 16 frames of 224 x 224 pixels; None for models
    of other patches or widths."""
    dim, _, *patch = shapes.get('patch_embed.projection.weight', (0, 0))
    # Smaller ones are made for tests, or by users, and were pre-trained at their own size.
    if dim < 384 or patch not in ([2, 16, 16], [2, 14, 14]):
        return None
    return 8, 224 // patch[1], 224 // patch[2]


def _published_table(shapes: dict[str, tuple[int, ...]], grid: tuple[int, ...] | None) -> torch.Tensor:
    """The fixed table of a file that holds none: that of the pre-trained grid, as the model knows no other, or of the
    target where the grids are not known."""
    _, length, dim = shapes['pos_embed']
    source = _published_grid(shapes)
    if source is None or grid is None or len(grid) != 3:
        return sinusoid(length, dim)
    return sinusoid(source[0] * source[1] * source[2], dim)


def _fold_gammas(state: State, report: Report) -> None:
    for i in range(depth(state, 'blocks')):
        for scale, linear in (('gamma_1', 'attn.proj'), ('gamma_2', 'mlp.layers.1')):
            gamma = state.pop(f'blocks.{i}.{scale}', None)
            if gamma is None:
                continue
            for part in ('weight', 'bias'):
                key = f'blocks.{i}.{linear}.{part}'
                state[key] = gamma.reshape(-1, *[1] * (state[key].ndim - 1)) * state[key]
            report.left_out[f'blocks.{i}.{scale}'] = 'layer scale, multiplied into the linear layer before it'


def _is_sinusoid(table: torch.Tensor) -> bool:
    # Files store it rounded, some in half precision.
    return bool(torch.allclose(table.float(), sinusoid(*table.shape[1:]).to(table.device), atol=1e-4))


def _grids(length: int, wanted: int, grid: tuple[int, ...] | None,
           published: tuple[int, int, int] | None) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Grids (T, H, W) of a table and of the target: the published one where its length fits, or one that shares time or
    space with the target.

    Raises:
        ValueError: The lengths do not tell.
    """
    if grid is None or len(grid) != 3 or grid[0] * grid[1] * grid[2] != wanted:
        raise ValueError(f'pos_embed: {length} learned positions, {wanted} wanted; give grid=(T, H, W)')
    target = (grid[0], grid[1], grid[2])
    if published and published[0] * published[1] * published[2] == length:
        return published, target
    # The same number of steps in time, another square in space?
    side = square(length // target[0]) if length % target[0] == 0 else None
    if side:
        return (target[0], side, side), target
    if length % (target[1] * target[2]) == 0:
        return (length // (target[1] * target[2]), target[1], target[2]), target
    raise ValueError(f'pos_embed: {length} learned positions share neither length nor grid with {target}')


#: Target keys that pre-training files lack by nature.
INITIAL = ((r'fc_norm\.(weight|bias)', 'norm after pooling, which pre-training files do not have'),)
#: Canonical keys that a target may lack.
SPARE = ((r'norm\.(weight|bias)', 'norm of all tokens; the target pools first and norms then'),
         (r'fc_norm\.(weight|bias)', 'norm after pooling; the target does not pool'))


def _without_table(state: State) -> State:
    """The fixed table of positions, which the others build as well."""
    state.pop('pos_embed', None)
    return state


def _hf_config(state: State, config: dict[str, Any]) -> dict[str, Any]:
    return config | dict(
        model_type='videomae', architectures=['VideoMAEForVideoClassification'],
        tubelet_size=state['patch_embed.projection.weight'].shape[2], use_mean_pooling='fc_norm.weight' in state,
        qkv_bias='blocks.0.attn.q_bias' in state)


_AS_ORIGINAL: Rules = (
    (r'patch_embed\.projection\.' + _WB, r'patch_embed.proj.\1'),
    (_B + r'(norm[12]\.(?:weight|bias)|attn\..*|gamma_[12])', r'\g<0>'),
    (_B + r'mlp\.layers\.0\.0\.' + _WB, r'blocks.\1.mlp.fc1.\2'),
    (_B + r'mlp\.layers\.1\.' + _WB, r'blocks.\1.mlp.fc2.\2'),
    (r'(norm|fc_norm|head)\.' + _WB, r'\g<0>'),
)
_AS_HF: Rules = (
    (r'patch_embed\.projection\.' + _WB, r'videomae.embeddings.patch_embeddings.projection.\1'),
    (_B + r'norm1\.' + _WB, r'videomae.encoder.layer.\1.layernorm_before.\2'),
    (_B + r'norm2\.' + _WB, r'videomae.encoder.layer.\1.layernorm_after.\2'),
    (_B + r'attn\.qkv\.weight', r'videomae.encoder.layer.\1.attention.attention.@.weight'),
    (_B + r'attn\.([qv])_bias', r'videomae.encoder.layer.\1.attention.attention.\2_bias'),
    (_B + r'attn\.proj\.' + _WB, r'videomae.encoder.layer.\1.attention.output.dense.\2'),
    (_B + r'mlp\.layers\.0\.0\.' + _WB, r'videomae.encoder.layer.\1.intermediate.dense.\2'),
    (_B + r'mlp\.layers\.1\.' + _WB, r'videomae.encoder.layer.\1.output.dense.\2'),
    (r'norm\.' + _WB, r'videomae.layernorm.\1'),
    (r'fc_norm\.' + _WB, r'\g<0>'),
    (r'head\.' + _WB, r'classifier.\1'),
)
_NEVER_CALLED = ('multiplies by qkv.weight itself and never calls the layer that peft replaces: the adapter would have '
                 "no effect; export to 'hf' or merge it")

_PROJ, _PROJECTION = 'patch_embed.proj.weight', 'patch_embed.projection.weight'
_HF_PROJECTION = 'embeddings.patch_embeddings.projection.weight'
ARCH = Arch(
    name='videomae',
    families=('videomae', 'vit'),
    adapt=to_target,
    initial=lambda shapes: INITIAL,
    spare=SPARE,
    formats={
        'videomae':
        Format('videomae', _PROJ, lambda s: s[_PROJ].ndim == 5 and has(s, 'blocks.'), from_original, words=ORIGINAL),
        'hf-videomae':
        Format('videomae', _HF_PROJECTION, lambda s: s[_HF_PROJECTION].ndim == 5, from_hf, words=HF,
               outer=((r'fc_norm\.(weight|bias)', r'fc_norm.\1'), (r'classifier\.(weight|bias)', r'head.\1'))),
        'mmaction-videomae':
        Format('videomae', _PROJECTION, lambda s: s[_PROJECTION].ndim == 5, from_mmaction),
    },
    exports={
        'original': Export(_AS_ORIGINAL, _without_table),
        'hf': Export(_AS_HF, _without_table, _hf_config),
    },
    lora={'hf': ('encoder.layer.{}', LORA_HF4), 'hf4': ('encoder.layer.{}', LORA_HF4)},
    no_lora={'mmaction2': _NEVER_CALLED, 'original': _NEVER_CALLED},
    stem='blocks',
    fc1='mlp.layers.0.0',
    hf_input=lambda grid, patch: dict(image_size=grid[-1] * patch[-1], num_frames=grid[0] * patch[0]),
)
