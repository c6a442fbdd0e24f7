"""Image towers of CLIP: OpenAI and open_clip names, Hugging Face names. Canonical form: mmpretrain's ViT with
``pre_norm``."""

from .rename import Ignored, Rules, State, rename
from .report import Report

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
    (_BLOCK + r'ls_1\.gamma', r'layers.\1.attn.gamma1.weight'),
    (_BLOCK + r'ls_2\.gamma', r'layers.\1.ffn.gamma2.weight'),
    (r'ln_post\.(weight|bias)', r'ln1.\1'),
    (r'proj', '+proj'),
)
OPENAI_IGNORED: Ignored = ((r'input_resolution|image_size', 'not a weight'),)
#: Keys beside the image tower.
OPENAI_OUTER: Ignored = (
    (r'(?:module\.)?(text\.|transformer\.|token_embedding|positional_embedding|ln_final|text_projection|cls_emb|'
     r'attn_mask).*',
     _TEXT),
    (r'(?:module\.)?(logit_scale|logit_bias|input_resolution|context_length|vocab_size)', 'not part of the trunk'),
)

_HF_LAYER = r'encoder\.layers\.(\d+)\.'
HF: Rules = (
    (r'embeddings\.class_embedding', 'cls_token'),
    (r'embeddings\.position_embedding\.weight', 'pos_embed'),
    (r'embeddings\.patch_embedding\.(weight|bias)', r'patch_embed.projection.\1'),
    (r'pre_layer?norm\.(weight|bias)|pre_layrnorm\.(weight|bias)', r'pre_norm.\1\2'),
    (_HF_LAYER + r'layer_norm([12])\.(weight|bias)', r'layers.\1.ln\2.\3'),
    (_HF_LAYER + r'self_attn\.([qkv])_proj\.(weight|bias)', r'layers.\1.attn.qkv.\3@\2'),
    (_HF_LAYER + r'self_attn\.out_proj\.(weight|bias)', r'layers.\1.attn.proj.\2'),
    (_HF_LAYER + r'mlp\.fc1\.(weight|bias)', r'layers.\1.ffn.layers.0.0.\2'),
    (_HF_LAYER + r'mlp\.fc2\.(weight|bias)', r'layers.\1.ffn.layers.1.\2'),
    (r'post_layernorm\.(weight|bias)', r'ln1.\1'),
)
HF_IGNORED: Ignored = ((r'embeddings\.position_ids', 'not a weight'),)
HF_OUTER: Ignored = ((r'text_(model|projection)\..*', _TEXT), (r'logit_scale|logit_bias', 'not part of the trunk'))


def from_openai(state: State, report: Report) -> State:
    """``visual.*`` of OpenAI's archives and of open_clip, prefix removed; half precision becomes single."""
    report.notes.append(
        'no tensor tells the activation: OpenAI trained with QuickGELU, most open_clip releases with GELU (act_cfg)')
    return _shaped(rename(state, OPENAI, OPENAI_IGNORED, report))


def from_hf(state: State, report: Report) -> State:
    """``vision_model.*`` of Hugging Face's CLIP, prefix removed."""
    return _shaped(rename(state, HF, HF_IGNORED, report))


def _shaped(state: State) -> State:
    """Give class token and position table the batch axis they have in mmpretrain."""
    if 'cls_token' in state:
        state['cls_token'] = state['cls_token'].reshape(1, 1, -1)
    if 'pos_embed' in state:
        state['pos_embed'] = state['pos_embed'].reshape(1, *state['pos_embed'].shape[-2:])
    return state
