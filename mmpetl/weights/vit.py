# SPDX-License-Identifier: Apache-2.0
"""Image transformers under mmpretrain's names: JAX, timm-like (MAE, MoCo v3, DeiT, DINOv2), Hugging Face.

The common form ("canonical") of every image ViT file is mmpretrain's ``VisionTransformer``: ``layers.i.ln1``,
``layers.i.attn.qkv``, ``layers.i.ffn.layers.0.0``, ``ln1`` (final norm), ``ln2`` (norm after average pooling),
``pre_norm``.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from einops import rearrange

from .arch import Arch, Export, Format, has
from .match_report import Report
from .rename import DECODER, HEAD, PETL_NAMES, Ignored, Rules, State, depth, rename
from .resize import resize_grid, square

TIMM: Rules = (
    (r'cls_token|pos_embed', r'\g<0>'),
    # timm says reg_token, facebookresearch register_tokens.
    (r'reg(?:ister)?_tokens?', 'register_tokens'),
    (r'patch_embed\.proj\.(weight|bias)', r'patch_embed.projection.\1'),
    # CLIP's norm before the blocks.
    (r'norm_pre\.(weight|bias)', r'pre_norm.\1'),
    (r'blocks\.(\d+)\.norm([12])\.(weight|bias)', r'layers.\1.ln\2.\3'),
    (r'blocks\.(\d+)\.attn\.(qkv|proj)\.(weight|bias)', r'layers.\1.attn.\2.\3'),
    (r'blocks\.(\d+)\.attn\.([qkv])(?:_proj)?\.(weight|bias)', r'layers.\1.attn.qkv.\3@\2'),
    # BEiT's form: there is no bias of the keys.
    (r'blocks\.(\d+)\.attn\.([qv])_bias', r'layers.\1.attn.qkv.bias@\2'),
    # AdaptFormer's files lack the level of the mlp.
    (r'blocks\.(\d+)\.(?:mlp\.)?fc1\.(weight|bias)', r'layers.\1.ffn.layers.0.0.\2'),
    (r'blocks\.(\d+)\.(?:mlp\.)?fc2\.(weight|bias)', r'layers.\1.ffn.layers.1.\2'),
    # Gated networks of DINOv2-giant.
    (r'blocks\.(\d+)\.mlp\.(w12|w3)\.(weight|bias)', r'layers.\1.ffn.\2.\3'),
    # Layer scale as timm and as BEiT call it.
    (r'blocks\.(\d+)\.(?:ls1\.gamma|gamma_1)', r'layers.\1.attn.gamma1.weight'),
    (r'blocks\.(\d+)\.(?:ls2\.gamma|gamma_2)', r'layers.\1.ffn.gamma2.weight'),
    (r'norm\.(weight|bias)', r'ln1.\1'),
    # Norm behind the pooling.
    (r'fc_norm\.(weight|bias)', r'ln2.\1'),
    (r'head\.(weight|bias)', r'+head.\1'),
)
TIMM_IGNORED: Ignored = (
    (r'(head|heads|fc|linear|projector|predictor)\..*', HEAD), (r'pre_logits\..*', HEAD),
    (r'decoder.*|mask_token|mask_embed', DECODER), *PETL_NAMES,
)

# encoder.layer.0 in transformers 4, and in 5 where a model has kept it; else layers.0.
_HF_LAYER = r'(?:encoder\.)?layers?\.(\d+)\.'
HF: Rules = (
    (r'embeddings\.cls_token', 'cls_token'),
    (r'embeddings\.register_tokens', 'register_tokens'),
    (r'embeddings\.position_embeddings', 'pos_embed'),
    (r'embeddings\.patch_embeddings\.projection\.(weight|bias)', r'patch_embed.projection.\1'),
    (_HF_LAYER + r'(?:layernorm_before|norm1)\.(weight|bias)', r'layers.\1.ln1.\2'),
    (_HF_LAYER + r'(?:layernorm_after|norm2)\.(weight|bias)', r'layers.\1.ln2.\2'),
    (_HF_LAYER + r'attention\.(?:attention\.)?(q|k|v)(?:uery|ey|alue|_proj)\.(weight|bias)',
     r'layers.\1.attn.qkv.\3@\2'),
    (_HF_LAYER + r'attention\.(?:output\.dense|o_proj)\.(weight|bias)', r'layers.\1.attn.proj.\2'),
    (_HF_LAYER + r'(?:intermediate\.dense|mlp\.fc1)\.(weight|bias)', r'layers.\1.ffn.layers.0.0.\2'),
    (_HF_LAYER + r'(?:output\.dense|mlp\.fc2)\.(weight|bias)', r'layers.\1.ffn.layers.1.\2'),
    # Gated networks of DINOv2-giant.
    (_HF_LAYER + r'mlp\.weights_in\.(weight|bias)', r'layers.\1.ffn.w12.\2'),
    (_HF_LAYER + r'mlp\.weights_out\.(weight|bias)', r'layers.\1.ffn.w3.\2'),
    (_HF_LAYER + r'layer_scale1\.lambda1', r'layers.\1.attn.gamma1.weight'),
    (_HF_LAYER + r'layer_scale2\.lambda1', r'layers.\1.ffn.gamma2.weight'),
    (r'layernorm\.(weight|bias)', r'ln1.\1'),
    (r'classifier\.(weight|bias)', r'+head.\1'),
)
HF_IGNORED: Ignored = (
    (r'embeddings\.(mask_token|position_ids)', DECODER),
    (r'pooler\..*', HEAD),
    (r'(decoder|mask_token).*', DECODER),
    *PETL_NAMES,
)

_JAX_BLOCK = r'Transformer/encoderblock_(\d+)/'
_JAX_ATTENTION = _JAX_BLOCK + r'MultiHeadDotProductAttention_1/'
JAX: Rules = (
    (r'cls', 'cls_token'),
    (r'Transformer/posembed_input/pos_embedding', 'pos_embed'),
    (r'embedding/kernel', 'patch_embed.projection.weight'),
    (r'embedding/bias', 'patch_embed.projection.bias'),
    (_JAX_BLOCK + r'LayerNorm_0/scale', r'layers.\1.ln1.weight'),
    (_JAX_BLOCK + r'LayerNorm_0/bias', r'layers.\1.ln1.bias'),
    (_JAX_BLOCK + r'LayerNorm_2/scale', r'layers.\1.ln2.weight'),
    (_JAX_BLOCK + r'LayerNorm_2/bias', r'layers.\1.ln2.bias'),
    (_JAX_ATTENTION + r'(q|k|v)(?:uery|ey|alue)/kernel', r'layers.\1.attn.qkv.weight@\2'),
    (_JAX_ATTENTION + r'(q|k|v)(?:uery|ey|alue)/bias', r'layers.\1.attn.qkv.bias@\2'),
    (_JAX_ATTENTION + r'out/kernel', r'layers.\1.attn.proj.weight'),
    (_JAX_ATTENTION + r'out/bias', r'layers.\1.attn.proj.bias'),
    (_JAX_BLOCK + r'MlpBlock_3/Dense_0/kernel', r'layers.\1.ffn.layers.0.0.weight'),
    (_JAX_BLOCK + r'MlpBlock_3/Dense_0/bias', r'layers.\1.ffn.layers.0.0.bias'),
    (_JAX_BLOCK + r'MlpBlock_3/Dense_1/kernel', r'layers.\1.ffn.layers.1.weight'),
    (_JAX_BLOCK + r'MlpBlock_3/Dense_1/bias', r'layers.\1.ffn.layers.1.bias'),
    (r'Transformer/encoder_norm/scale', 'ln1.weight'),
    (r'Transformer/encoder_norm/bias', 'ln1.bias'),
    # pre_logits: the layer before the classifier of files for ImageNet-21k.
    (r'(head|pre_logits)/kernel', r'+\1.weight'),
    (r'(head|pre_logits)/bias', r'+\1.bias'),
)


def from_timm(state: State, report: Report) -> State:
    """timm, MAE, MoCo v3, DeiT and facebookresearch's DINOv2, which share their names."""
    return _positions(rename(state, TIMM, TIMM_IGNORED, report))


def from_hf(state: State, report: Report) -> State:
    """Hugging Face ViT, ViTMAE, DINOv2 and DINOv2 with registers, names of transformers 4 and 5."""
    return _positions(rename(state, HF, HF_IGNORED, report))


def from_jax(state: State, report: Report) -> State:
    """``ViT-B_16.npz`` and its kin: kernels are (in, out) or split into heads, the patch kernel is (h, w, in, out)."""
    # Before renaming: the published names tell what the axes mean.
    shaped = {key: _jax_array(key, tensor) for key, tensor in state.items()}
    return rename(shaped, JAX, (), report)


def from_mmpretrain(state: State, report: Report) -> State:
    """mmpretrain's own names."""
    return dict(state)


def _jax_array(key: str, tensor: torch.Tensor) -> torch.Tensor:
    if key == 'embedding/kernel':
        return rearrange(tensor, 'h w i o -> o i h w').contiguous()
    if key.endswith('/out/kernel'):
        return rearrange(tensor, 'heads d o -> o (heads d)').contiguous()
    if 'Attention' in key:
        if key.endswith('kernel') and tensor.ndim == 3:
            return rearrange(tensor, 'i heads d -> (heads d) i').contiguous()
        return tensor.t().contiguous() if key.endswith('kernel') else tensor.flatten()
    return tensor.t().contiguous() if key.endswith('kernel') and tensor.ndim == 2 else tensor


def _positions(state: State) -> State:
    """Give the class token a zero row where the file's position table covers the patches alone."""
    table = state.get('pos_embed')
    # A square length is a grid alone; one more is a grid and the row of the class token.
    if table is not None and 'cls_token' in state and square(table.shape[1]) and not square(table.shape[1] - 1):
        state['pos_embed'] = torch.cat([torch.zeros_like(table[:, :1]), table], dim=1)
    return state


def fold_layer_scale(state: State, report: Report) -> None:
    """Multiply LayerScale into the linear layer before it, exactly: diag(g) (W x + b) = (diag(g) W) x + g b."""
    # The scale, and the layer before it: plain networks end in layers.1, gated ones in w3.
    pairs = (('attn.gamma1.weight', 'attn.proj'), ('ffn.gamma2.weight', 'ffn.layers.1'), ('ffn.gamma2.weight',
                                                                                          'ffn.w3'))
    for i in range(depth(state, 'layers')):
        for scale, linear in pairs:
            gamma, name = state.get(f'layers.{i}.{scale}'), f'layers.{i}.{linear}'
            if gamma is None or f'{name}.weight' not in state:
                continue
            # Rows are outputs.
            state[f'{name}.weight'] = gamma[:, None] * state[f'{name}.weight']
            if f'{name}.bias' in state:
                state[f'{name}.bias'] = gamma * state[f'{name}.bias']
            report.left_out[f'layers.{i}.{scale}'] = 'layer scale, multiplied into the linear layer before it'
            del state[f'layers.{i}.{scale}']


def to_target(state: State, shapes: dict[str, tuple[int, ...]], grid: tuple[int, ...] | None, report: Report) -> State:
    """Adapt canonical tensors to one mmpretrain ``VisionTransformer``.

    Args:
        state (dict): Canonical tensors.
        shapes (dict): The target's keys and shapes.
        grid (tuple | None): Target patch grid (H, W); taken to be square where None.
        report (Report): Receives what changes.

    Raises:
        ValueError: Register tokens, for which mmpretrain's ViT has no place, or a grid that cannot be told.
    """
    # The target was built without layer scale; merged into the layer before, it is the same function.
    if shapes and not any('gamma1.weight' in key for key in shapes):
        fold_layer_scale(state, report)
    take_registers(state, report)
    if shapes and 'cls_token' not in shapes and 'cls_token' in state:
        report.left_out['cls_token'] = 'the target has no class token'
        del state['cls_token']
        state['pos_embed'] = state['pos_embed'][:, 1:]
        report.notes.append('class token and its position dropped')
    if 'pos_embed' in state and 'pos_embed' in shapes and tuple(state['pos_embed'].shape) != shapes['pos_embed']:
        old = tuple(state['pos_embed'].shape)
        state['pos_embed'] = fit_positions(state['pos_embed'], shapes['pos_embed'], 'cls_token' in shapes, grid)
        # Resizing changes the function a little, so it is reported.
        report.reshaped.append(('pos_embed', old, tuple(state['pos_embed'].shape), 'grid resized, bicubic'))
    return state


def take_registers(state: State, report: Report) -> None:
    """Move register tokens to the report's extras, if that was asked for by name.

    mmpretrain's ViT has no register tokens, and leaving them out changes the features of a model trained with them. In
    the place of shallow prompts they do exactly what they did: ``petl=[dict(type='VPT', name='registers', num_tokens=4,
    deep=False)]``.

    Raises:
        ValueError: The file has registers and the format name ``'dinov2-registers'`` was not given.
    """
    # Popped in any case: mmpretrain has no key for them.
    registers = state.pop('register_tokens', None)
    if registers is None:
        return
    if not report.source.endswith('dinov2-registers'):
        raise ValueError(
            f'register_tokens: the file has {registers.shape[1]} register tokens, for which the plain backbone has no '
            f'place; convert it '
            "with --as dinov2-registers and give the backbone petl=[dict(type='VPT', name='registers', "
            f'num_tokens={registers.shape[1]}, deep=False)], or take the release without registers')
    report.extras['register_tokens'] = registers
    report.left_out['register_tokens'] = 'take the place of shallow prompts: VPT, deep=False'


def fit_positions(table: torch.Tensor, shape: tuple[int, ...], with_cls: bool,
                  grid: tuple[int, ...] | None) -> torch.Tensor:
    """Resize ``table`` (1, [1 +] h * w, C) to ``shape``; the source grid is square.

    Raises:
        ValueError: One of the grids cannot be told from its length, or the widths differ.
    """
    # The class token's row comes first and is not resized.
    extra = int(with_cls)
    source = square(table.shape[1] - extra)
    side = square(shape[1] - extra)
    target = grid or ((side, side) if side else None)
    if source is None or target is None or target[0] * target[1] != shape[1] - extra or table.shape[2] != shape[2]:
        raise ValueError(
            f'pos_embed: cannot resize {tuple(table.shape)} to {tuple(shape)}; for a grid that is not square give '
            f'grid=(H, W)'
        )
    return resize_grid(table, (source, source), (target[0], target[1]), extra)


#: Target keys that pre-training files lack by nature.
INITIAL = ((r'ln2\.(weight|bias)', 'norm after pooling, which such files do not have'),)
#: Canonical keys that a target may lack.
SPARE = ((r'ln1\.(weight|bias)', 'norm of all tokens; the target was built with final_norm=False'),
         (r'ln2\.(weight|bias)', 'norm after pooling; the target does not pool'))


def image_size(state: State) -> int:
    """Side in pixels of the square image whose position table (1, 1 + H * W, C) a backbone with a class token has."""
    return round((state['pos_embed'].shape[1] - 1)**0.5) * state['patch_embed.projection.weight'].shape[-1]


def _made_for(state: State) -> str:
    """CLIP's towers are this family with a norm before the blocks."""
    return 'clip' if any(key.endswith(('norm_pre.weight', 'pre_norm.weight')) for key in state) else 'vit'


def _layer_scaled(state: Mapping[str, Any], library: str) -> Arch | None:
    """transformers knows a ViT with layer scale as DINOv2."""
    return LAYER_SCALED if library.startswith('hf') and 'layers.0.attn.gamma1.weight' in state else None


def _vit_config(state: State, config: dict[str, Any]) -> dict[str, Any]:
    return config | dict(model_type='vit', architectures=['ViTForImageClassification'],
                         qkv_bias='layers.0.attn.qkv.bias' in state, image_size=image_size(state))


def _beside_patches(state: State) -> State:
    """A head of the class token as transformers has it, which reads the mean of the patches too: that has zeros."""
    if 'head.weight' in state:
        state['head.weight'] = torch.cat([state['head.weight'], torch.zeros_like(state['head.weight'])], 1)
    return state


def _dinov2_config(state: State, config: dict[str, Any]) -> dict[str, Any]:
    ratio = config.pop('intermediate_size') // config['hidden_size']
    name = 'Dinov2ForImageClassification' if 'head.weight' in state else 'Dinov2Model'
    return config | dict(model_type='dinov2', architectures=[name], use_mask_token=False, mlp_ratio=ratio,
                         image_size=image_size(state))


_WB = r'(weight|bias)'
_LAYER = r'layers\.(\d+)\.'
_AS_TIMM: Rules = (
    (r'cls_token|pos_embed', r'\g<0>'),
    (r'patch_embed\.projection\.' + _WB, r'patch_embed.proj.\1'),
    (r'pre_norm\.' + _WB, r'norm_pre.\1'),
    (_LAYER + r'ln([12])\.' + _WB, r'blocks.\1.norm\2.\3'),
    (_LAYER + r'attn\.(qkv|proj)\.' + _WB, r'blocks.\1.attn.\2.\3'),
    (_LAYER + r'attn\.gamma1\.weight', r'blocks.\1.ls1.gamma'),
    (_LAYER + r'ffn\.gamma2\.weight', r'blocks.\1.ls2.gamma'),
    (_LAYER + r'ffn\.layers\.0\.0\.' + _WB, r'blocks.\1.mlp.fc1.\2'),
    (_LAYER + r'ffn\.layers\.1\.' + _WB, r'blocks.\1.mlp.fc2.\2'),
    (r'ln1\.' + _WB, r'norm.\1'),
    (r'ln2\.' + _WB, r'fc_norm.\1'),
    (r'head\.' + _WB, r'\g<0>'),
)
_AS_HF: Rules = (
    (r'cls_token', 'embeddings.cls_token'),
    (r'pos_embed', 'embeddings.position_embeddings'),
    (r'patch_embed\.projection\.' + _WB, r'embeddings.patch_embeddings.projection.\1'),
    # Files on the hub keep the names of transformers 4, which version 5 renames while it loads.
    (_LAYER + r'attn\.qkv\.' + _WB, r'encoder.layer.\1.attention.attention.@.\2'),
    (_LAYER + r'attn\.proj\.' + _WB, r'encoder.layer.\1.attention.output.dense.\2'),
    (_LAYER + r'ffn\.layers\.0\.0\.' + _WB, r'encoder.layer.\1.intermediate.dense.\2'),
    (_LAYER + r'ffn\.layers\.1\.' + _WB, r'encoder.layer.\1.output.dense.\2'),
    (_LAYER + r'ln1\.' + _WB, r'encoder.layer.\1.layernorm_before.\2'),
    (_LAYER + r'ln2\.' + _WB, r'encoder.layer.\1.layernorm_after.\2'),
    (r'ln1\.' + _WB, r'layernorm.\1'),
    (r'head\.' + _WB, r'classifier.\1'),
)
#: Rules that come before those of ViT: the first match decides.
_AS_DINOV2: Rules = (
    (_LAYER + r'ln([12])\.' + _WB, r'encoder.layer.\1.norm\2.\3'),
    (_LAYER + r'attn\.gamma1\.weight', r'encoder.layer.\1.layer_scale1.lambda1'),
    (_LAYER + r'ffn\.gamma2\.weight', r'encoder.layer.\1.layer_scale2.lambda1'),
    (_LAYER + r'ffn\.layers\.0\.0\.' + _WB, r'encoder.layer.\1.mlp.fc1.\2'),
    (_LAYER + r'ffn\.layers\.1\.' + _WB, r'encoder.layer.\1.mlp.fc2.\2'),
    *_AS_HF,
)

_LORA_TIMM = {**{op: 'attn.qkv' for op in 'qkv'}, 'proj': 'attn.proj', 'fc1': 'mlp.fc1', 'fc2': 'mlp.fc2'}
_LORA_HF5 = {'q': 'attention.q_proj', 'k': 'attention.k_proj', 'v': 'attention.v_proj', 'proj': 'attention.o_proj',
             'fc1': 'mlp.fc1', 'fc2': 'mlp.fc2'}
#: Modules of transformers 4, which its VideoMAE has in version 5 as well.
LORA_HF4 = {'q': 'attention.attention.query', 'k': 'attention.attention.key', 'v': 'attention.attention.value',
            'proj': 'attention.output.dense', 'fc1': 'intermediate.dense', 'fc2': 'output.dense'}

_PROJ, _PROJECTION = 'patch_embed.proj.weight', 'patch_embed.projection.weight'
_HF = 'embeddings.patch_embeddings.projection.weight'
ARCH = Arch(
    name='vit',
    families=('vit', ),
    adapt=to_target,
    initial=lambda shapes: INITIAL,
    spare=SPARE,
    formats={
        'jax-vit':
        Format('vit', 'embedding/kernel', lambda s: True, from_jax, words=JAX, aliases=('npz', ), arch_of=_made_for),
        # Never found out: registers are left out only where that was asked for by name.
        'dinov2-registers':
        Format('vit', _PROJ, lambda s: False, from_timm, arch_of=_made_for),
        'hf-dinov2-registers':
        Format('vit', _HF, lambda s: False, from_hf, arch_of=_made_for),
        'timm-vit':
        Format('vit', _PROJ, lambda s: s[_PROJ].ndim == 4 and has(s, 'blocks.'), from_timm, words=TIMM,
               aliases=('mae', 'mocov3', 'deit', 'dinov2'), arch_of=_made_for),
        'hf-vit':
        Format('vit', _HF, lambda s: s[_HF].ndim == 4 and 'embeddings.cls_token' in s, from_hf, words=HF,
               outer=((r'classifier\.(weight|bias)', r'classifier.\1'), ), aliases=('hf-dinov2', 'hf-mae'),
               arch_of=_made_for),
        'mmpretrain-vit':
        Format('vit', _PROJECTION, lambda s: s[_PROJECTION].ndim == 4 and has(s, 'layers.'), from_mmpretrain,
               arch_of=_made_for),
    },
    exports={'timm': Export(_AS_TIMM), 'hf': Export(_AS_HF, config=_vit_config)},
    lora={
        'timm': ('blocks.{}', _LORA_TIMM),
        'mmpretrain': ('layers.{}', {**_LORA_TIMM, 'fc1': 'ffn.layers.0.0', 'fc2': 'ffn.layers.1'}),
        'hf': ('layers.{}', _LORA_HF5),
        'hf4': ('encoder.layer.{}', LORA_HF4),
    },
    elsewhere=_layer_scaled,
)
LAYER_SCALED = dataclasses.replace(
    ARCH,
    name='dinov2',
    formats={},
    exports={'hf': Export(_AS_DINOV2, _beside_patches, _dinov2_config)},
    lora={
        'hf': ('encoder.layer.{}', _LORA_HF5),
        'hf4': ('encoder.layer.{}', {**LORA_HF4, 'fc1': 'mlp.fc1', 'fc2': 'mlp.fc2'}),
    },
)
