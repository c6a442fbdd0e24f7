# SPDX-License-Identifier: Apache-2.0
"""Image towers of CLIP: OpenAI and open_clip names, Hugging Face names. Canonical form: mmpretrain's ViT with
``pre_norm``."""

from typing import Any

from . import vit
from .arch import Arch, Export, Format, has
from .match_report import Report
from .rename import Ignored, Rules, State, mapped, rename

_TEXT = 'text tower'
_BLOCK = r'transformer\.resblocks\.(\d+)\.'
OPENAI: Rules = (
    (r'class_embedding', 'cls_token'),
    (r'positional_embedding', 'pos_embed'),
    (r'conv1\.(weight|bias)', r'patch_embed.projection.\1'),
    (r'ln_pre\.(weight|bias)', r'pre_norm.\1'),
    (_BLOCK + r'ln_([12])\.(weight|bias)', r'layers.\1.ln\2.\3'),
    (_BLOCK + r'attn\.in_proj_(weight|bias)', r'layers.\1.attn.qkv.\2'),
    (_BLOCK + r'attn\.out_proj\.(weight|bias)', r'layers.\1.attn.proj.\2'),
    (_BLOCK + r'mlp\.c_fc\.(weight|bias)', r'layers.\1.ffn.layers.0.0.\2'),
    (_BLOCK + r'mlp\.c_proj\.(weight|bias)', r'layers.\1.ffn.layers.1.\2'),
    # Layer scale of some of open_clip's models.
    (_BLOCK + r'ls_1\.gamma', r'layers.\1.attn.gamma1.weight'),
    (_BLOCK + r'ls_2\.gamma', r'layers.\1.ffn.gamma2.weight'),
    (r'ln_post\.(weight|bias)', r'ln1.\1'),
    # To the space shared with text: not the backbone's, and kept.
    (r'proj', '+proj'),
)
OPENAI_IGNORED: Ignored = ((r'input_resolution|image_size', 'not a weight'),)
#: Keys beside the image tower.
OPENAI_OUTER: Ignored = (
    (r'(?:module\.)?(text\.|transformer\.|token_embedding|positional_embedding|ln_final|text_projection|cls_emb|'
     r'attn_mask).*',
     _TEXT),
    (r'(?:module\.)?(logit_scale|logit_bias|input_resolution|context_length|vocab_size)', 'not part of the backbone'),
)

_HF_LAYER = r'encoder\.layers\.(\d+)\.'
HF: Rules = (
    (r'embeddings\.class_embedding', 'cls_token'),
    (r'embeddings\.position_embedding\.weight', 'pos_embed'),
    (r'embeddings\.patch_embedding\.(weight|bias)', r'patch_embed.projection.\1'),
    # transformers once misspelt the name and kept it.
    (r'pre_layer?norm\.(weight|bias)|pre_layrnorm\.(weight|bias)', r'pre_norm.\1\2'),
    (_HF_LAYER + r'layer_norm([12])\.(weight|bias)', r'layers.\1.ln\2.\3'),
    (_HF_LAYER + r'self_attn\.([qkv])_proj\.(weight|bias)', r'layers.\1.attn.qkv.\3@\2'),
    (_HF_LAYER + r'self_attn\.out_proj\.(weight|bias)', r'layers.\1.attn.proj.\2'),
    (_HF_LAYER + r'mlp\.fc1\.(weight|bias)', r'layers.\1.ffn.layers.0.0.\2'),
    (_HF_LAYER + r'mlp\.fc2\.(weight|bias)', r'layers.\1.ffn.layers.1.\2'),
    (r'post_layernorm\.(weight|bias)', r'ln1.\1'),
)
HF_IGNORED: Ignored = ((r'embeddings\.position_ids', 'not a weight'),)
HF_OUTER: Ignored = ((r'text_(model|projection)\..*', _TEXT), (r'logit_scale|logit_bias', 'not part of the backbone'))


def from_openai(state: State, report: Report) -> State:
    """``visual.*`` of OpenAI's archives and of open_clip, prefix removed; half precision becomes single."""
    report.notes.append(
        'no tensor tells the activation: OpenAI trained with QuickGELU, most open_clip releases with GELU (act_cfg)')
    return _shaped(rename(state, OPENAI, OPENAI_IGNORED, report))


def from_hf(state: State, report: Report) -> State:
    """``vision_model.*`` of Hugging Face's CLIP, prefix removed."""
    # transformers keeps QuickGELU in its config, which a weight file does not hold.
    return _shaped(rename(state, HF, HF_IGNORED, report))


def _shaped(state: State) -> State:
    """Give class token and position table the batch axis they have in mmpretrain."""
    if 'cls_token' in state:
        # (C) there, (1, 1, C) here.
        state['cls_token'] = state['cls_token'].reshape(1, 1, -1)
    if 'pos_embed' in state:
        state['pos_embed'] = state['pos_embed'].reshape(1, *state['pos_embed'].shape[-2:])
    return state


def _to_openai(state: State) -> State:
    # The way back of _shaped.
    mapped(state, 'cls_token', lambda tensor: tensor.flatten())
    mapped(state, 'pos_embed', lambda tensor: tensor[0])
    return state


def _to_hf(state: State) -> State:
    state = _to_openai(state)
    mapped(state, 'proj', lambda tensor: tensor.t())  # a Linear's weight there, a factor on the right here
    return state


def _hf_config(state: State, config: dict[str, Any]) -> dict[str, Any]:
    config |= dict(model_type='clip_vision_model', architectures=['CLIPVisionModelWithProjection'],
                   hidden_act='quick_gelu', image_size=vit.image_size(state))
    return config | (dict(projection_dim=state['proj'].shape[1]) if 'proj' in state else {})


_VIT = r'layers\.(\d+)\.'
_WB = r'(weight|bias)'
_AS_OPENAI: Rules = (
    (r'cls_token', 'class_embedding'),
    (r'pos_embed', 'positional_embedding'),
    (r'patch_embed\.projection\.weight', 'conv1.weight'),
    (r'pre_norm\.' + _WB, r'ln_pre.\1'),
    (_VIT + r'ln([12])\.' + _WB, r'transformer.resblocks.\1.ln_\2.\3'),
    (_VIT + r'attn\.qkv\.' + _WB, r'transformer.resblocks.\1.attn.in_proj_\2'),
    (_VIT + r'attn\.proj\.' + _WB, r'transformer.resblocks.\1.attn.out_proj.\2'),
    (_VIT + r'ffn\.layers\.0\.0\.' + _WB, r'transformer.resblocks.\1.mlp.c_fc.\2'),
    (_VIT + r'ffn\.layers\.1\.' + _WB, r'transformer.resblocks.\1.mlp.c_proj.\2'),
    (r'ln1\.' + _WB, r'ln_post.\1'),
    (r'proj', 'proj'),
)
_AS_HF: Rules = (
    (r'cls_token', 'vision_model.embeddings.class_embedding'),
    (r'pos_embed', 'vision_model.embeddings.position_embedding.weight'),
    (r'patch_embed\.projection\.weight', 'vision_model.embeddings.patch_embedding.weight'),
    (r'pre_norm\.' + _WB, r'vision_model.pre_layrnorm.\1'),  # their spelling
    (_VIT + r'ln([12])\.' + _WB, r'vision_model.encoder.layers.\1.layer_norm\2.\3'),
    (_VIT + r'attn\.qkv\.' + _WB, r'vision_model.encoder.layers.\1.self_attn.@_proj.\2'),
    (_VIT + r'attn\.proj\.' + _WB, r'vision_model.encoder.layers.\1.self_attn.out_proj.\2'),
    (_VIT + r'ffn\.layers\.0\.0\.' + _WB, r'vision_model.encoder.layers.\1.mlp.fc1.\2'),
    (_VIT + r'ffn\.layers\.1\.' + _WB, r'vision_model.encoder.layers.\1.mlp.fc2.\2'),
    (r'ln1\.' + _WB, r'vision_model.post_layernorm.\1'),
    (r'proj', 'visual_projection.weight'),
)
_LORA_HF = ('encoder.layers.{}', {**{op: f'self_attn.{op}_proj' for op in 'qkv'}, 'proj': 'self_attn.out_proj',
                                  'fc1': 'mlp.fc1', 'fc2': 'mlp.fc2'})

ARCH = Arch(
    name='clip',
    families=vit.ARCH.families,
    adapt=vit.ARCH.adapt,
    initial=vit.ARCH.initial,
    spare=vit.ARCH.spare,
    formats={
        'openai-clip':
        Format('vit', 'class_embedding', lambda s: 'conv1.weight' in s, from_openai, outer_ignored=OPENAI_OUTER,
               words=OPENAI, aliases=('open-clip', ), arch_of=lambda state: 'clip'),
        'hf-clip':
        Format('vit', 'embeddings.patch_embedding.weight', lambda s: has(s, 'pre_lay'), from_hf, outer_ignored=HF_OUTER,
               words=HF, arch_of=lambda state: 'clip'),
    },
    exports={
        # timm has CLIP's towers as its own vision transformers, under the same names.
        'timm': vit.ARCH.exports['timm'],
        'openai': Export(_AS_OPENAI, _to_openai),
        'hf': Export(_AS_HF, _to_hf, _hf_config),
    },
    lora={'timm': vit.ARCH.lora['timm'], 'hf': _LORA_HF, 'hf4': _LORA_HF, 'mmpretrain': vit.ARCH.lora['mmpretrain']},
    projects=True,
)
