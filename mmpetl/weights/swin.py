# SPDX-License-Identifier: Apache-2.0
"""Image Swin transformers: the original, timm and Hugging Face into mmpretrain's names, and the order inside patch
merging.

Canonical form: the original repository's names (``layers.i.blocks.j.attn.qkv``, ``layers.i.downsample`` after stage i,
``norm``).
"""

import re

import torch
from einops import rearrange

from .arch import Arch, Export, Format, has
from .match_report import Report
from .rename import DECODER, HEAD, PETL_NAMES, Ignored, Rules, State, depth, mapped, relabel, rename
from .resize import bias_window, relative_index, resize_bias
from .vit import fit_positions

_BLOCK = r'layers\.(\d+)\.blocks\.(\d+)\.'
_WB = r'(weight|bias)'
ORIGINAL: Rules = (
    (r'patch_embed\.(proj|norm)\.' + _WB, r'\g<0>'),
    (r'absolute_pos_embed', r'\g<0>'),
    (_BLOCK + r'(norm[12]|attn\.qkv|attn\.proj|mlp\.fc[12])\.' + _WB, r'\g<0>'),
    (_BLOCK + r'(?:mlp\.)?(fc[12])\.' + _WB, r'layers.\1.blocks.\2.mlp.\3.\4'),
    (_BLOCK + r'attn\.relative_position_(bias_table|index)', r'\g<0>'),
    (r'layers\.\d+\.downsample\.(norm|reduction)\.' + _WB, r'\g<0>'),
    # OpenMMLab numbers the norms of its outputs.
    (r'norm\d?\.' + _WB, r'\g<0>'),
    (r'head\.(?:fc\.)?' + _WB, r'+head.\1'),
    # V-PETL's classifier.
    (r'fc\.0\.' + _WB, r'+head.\1'),
)
IGNORED: Ignored = (
    (r'.*attn_mask', 'window mask, built by the model'),
    (r'(head|fc|cls_head)\..*', HEAD),
    (r'decoder.*|mask_token', DECODER),
    (r'.*(qkv_adapter|control_trans).*', PETL_NAMES[0][1]),
    *PETL_NAMES,
)

_HF_BLOCK = r'encoder\.layers\.(\d+)\.blocks\.(\d+)\.'
HF: Rules = (
    (r'embeddings\.patch_embeddings\.projection\.' + _WB, r'patch_embed.proj.\1'),
    (r'embeddings\.norm\.' + _WB, r'patch_embed.norm.\1'),
    (r'embeddings\.position_embeddings', 'absolute_pos_embed'),
    (_HF_BLOCK + r'layernorm_before\.' + _WB, r'layers.\1.blocks.\2.norm1.\3'),
    (_HF_BLOCK + r'layernorm_after\.' + _WB, r'layers.\1.blocks.\2.norm2.\3'),
    (_HF_BLOCK + r'attention\.(?:self\.)?(q|k|v)(?:uery|ey|alue|_proj)\.' + _WB, r'layers.\1.blocks.\2.attn.qkv.\4@\3'),
    (_HF_BLOCK + r'attention\.(?:output\.dense|o_proj)\.' + _WB, r'layers.\1.blocks.\2.attn.proj.\3'),
    (_HF_BLOCK + r'attention\.(?:self|relative_position_bias)\.relative_position_(bias_table|index)',
     r'layers.\1.blocks.\2.attn.relative_position_\3'),
    (_HF_BLOCK + r'(?:intermediate\.dense|mlp\.fc1)\.' + _WB, r'layers.\1.blocks.\2.mlp.fc1.\3'),
    (_HF_BLOCK + r'(?:output\.dense|mlp\.fc2)\.' + _WB, r'layers.\1.blocks.\2.mlp.fc2.\3'),
    (r'encoder\.layers\.(\d+)\.downsample\.(norm|reduction)\.' + _WB, r'layers.\1.downsample.\2.\3'),
    (r'layernorm\.' + _WB, r'norm.\1'),
)
HF_IGNORED: Ignored = ((r'embeddings\.mask_token', DECODER), (r'pooler\..*', HEAD), *IGNORED)

#: Canonical -> mmpretrain, without the reordering in patch merging and without the number of the last norm.
_TO_MMPRETRAIN: Rules = (
    (r'patch_embed\.proj\.' + _WB, r'patch_embed.projection.\1'),
    # Upstream's attention sits inside the one that shifts the windows.
    (_BLOCK + r'attn\.(.*)', r'stages.\1.blocks.\2.attn.w_msa.\3'),
    (_BLOCK + r'mlp\.fc1\.' + _WB, r'stages.\1.blocks.\2.ffn.layers.0.0.\3'),
    (_BLOCK + r'mlp\.fc2\.' + _WB, r'stages.\1.blocks.\2.ffn.layers.1.\3'),
    (r'layers\.(\d+)\.(.*)', r'stages.\1.\2'),
)
_STAGE_BLOCK = r'stages\.(\d+)\.blocks\.(\d+)\.'
_FROM_MMPRETRAIN: Rules = (
    (r'patch_embed\.projection\.' + _WB, r'patch_embed.proj.\1'),
    (_STAGE_BLOCK + r'attn\.w_msa\.(.*)', r'layers.\1.blocks.\2.attn.\3'),
    (_STAGE_BLOCK + r'ffn\.layers\.0\.0\.' + _WB, r'layers.\1.blocks.\2.mlp.fc1.\3'),
    (_STAGE_BLOCK + r'ffn\.layers\.1\.' + _WB, r'layers.\1.blocks.\2.mlp.fc2.\3'),
    (r'stages\.(\d+)\.(.*)', r'layers.\1.\2'),
)


def merge_order_to_mmpretrain(tensor: torch.Tensor) -> torch.Tensor:
    """Reorder the inputs of patch merging, last axis 4C, from the original order to mmpretrain's.

    The original concatenates the four pixels (0,0) (1,0) (0,1) (1,1), each with all its channels. mmcv unfolds: every
    channel with its pixels (0,0) (0,1) (1,0) (1,1).
    """
    return rearrange(tensor, '... (column row c) -> ... (c row column)', row=2, column=2).contiguous()


def merge_order_from_mmpretrain(tensor: torch.Tensor) -> torch.Tensor:
    """Inverse of :func:`merge_order_to_mmpretrain`: (..., 4 C) -> (..., 4 C)."""
    return rearrange(tensor, '... (c row column) -> ... (column row c)', row=2, column=2).contiguous()


def from_original(state: State, report: Report) -> State:
    """Microsoft's Swin, images or videos."""
    return rename(state, ORIGINAL, IGNORED, report)


def from_timm(state: State, report: Report) -> State:
    """timm since 0.9: patch merging opens a stage instead of closing the one before."""
    # Renamed apart: layers.1 -> layers.0 must not meet a key that is still to move.
    moved = {key: tensor for key, tensor in state.items() if '.downsample.' not in key}
    for key in state.keys() - moved.keys():
        # Merging that opens stage i closes stage i - 1.
        stage = int(key.split('.')[1])
        moved[key.replace(f'layers.{stage}.', f'layers.{stage - 1}.', 1)] = state[key]
    return from_original(moved, report)


def from_hf(state: State, report: Report) -> State:
    """Hugging Face Swin, names of transformers 4 and 5."""
    return rename(state, HF, HF_IGNORED, report)


def from_mmpretrain(state: State, report: Report) -> State:
    """mmpretrain's own names, patch merging brought back to the original order."""
    # Buffers that every model builds for its own size.
    kept = {key: tensor for key, tensor in state.items() if not key.endswith('attn_mask')}
    # Of a four-stage network 3; the norm behind the last stage is the final one.
    last = depth(kept, 'stages') - 1
    renamed = relabel(kept, (*_FROM_MMPRETRAIN, (rf'norm{last}\.' + _WB, r'norm.\1')))
    mapped(renamed, r'layers\.\d+\.downsample\..*', merge_order_from_mmpretrain)
    return renamed


def number_last_norm(state: State) -> State:
    """``norm`` -> ``norm3`` of a four-stage network: OpenMMLab numbers the norms of its outputs."""
    return relabel(state, ((r'norm\.' + _WB, rf'norm{depth(state, "layers") - 1}.\1'),))


def to_target(state: State, shapes: dict[str, tuple[int, ...]], grid: tuple[int, ...] | None, report: Report) -> State:
    """Adapt canonical tensors to one mmpretrain ``SwinTransformer``; bias tables are resized to its windows."""
    mapped(state, r'layers\.\d+\.downsample\..*', merge_order_to_mmpretrain)
    # Numbered first: afterwards stages have other names, and depth could not be read off.
    state = relabel(number_last_norm(state), _TO_MMPRETRAIN)
    key = 'absolute_pos_embed'
    if key in state and key in shapes and tuple(state[key].shape) != shapes[key]:
        old = tuple(state[key].shape)
        state[key] = fit_positions(state[key], shapes[key], False, grid)
        report.reshaped.append((key, old, shapes[key], 'grid resized, bicubic'))
    return fit_tables(state, shapes, report, dims=2)


def fit_tables(state: State, shapes: dict[str, tuple[int, ...]], report: Report, dims: int) -> State:
    """Resize bias tables to the windows of the target and write the index buffers that belong to them.

    Args:
        state (dict): Tensors under the target's names.
        shapes (dict): The target's keys and shapes; with none, every table keeps its window.
        report (Report): Receives what changes.
        dims (int): Axes of a window, 2 or 3.
    """
    for key in [key for key in state if key.endswith('relative_position_bias_table')]:
        table, index_key = state[key], key.replace('bias_table', 'index')
        # The file's index belongs to the file's window; it tells its size and is then of no use.
        stored = state.pop(index_key, None)
        shape = shapes.get(key, tuple(table.shape))
        tokens = shapes[index_key][
            0] if index_key in shapes else None if stored is None or key in shapes else stored.shape[0]
        # Rows alone may fit several windows; the number of tokens decides.
        target = bias_window(shape[0], tokens, dims=dims)
        if tuple(table.shape) != shape and table.shape[1] == shape[1]:
            source = bias_window(table.shape[0], None if stored is None else stored.shape[0], like=target, dims=dims)
            state[key] = resize_bias(table, source, target)
            report.reshaped.append((key, tuple(table.shape), shape, f'window {source} -> {target}, bicubic'))
        state[index_key] = relative_index(target)
        if stored is None or stored.shape != state[index_key].shape:
            report.generated[index_key] = 'fixed index of pairs of tokens'
    return state


def initial_keys(shapes: dict[str, tuple[int, ...]]) -> Ignored:
    """Target keys that published files lack by nature: norms of all outputs but the last stage's."""
    last = max(depth(shapes, 'stages'), depth(shapes, 'layers')) - 1
    return tuple((rf'norm{stage}\.(weight|bias)', 'norm of an inner output, which such files do not have')
                 for stage in range(last))


#: Canonical keys that a target may lack.
SPARE = ((r'norm\d\.(weight|bias)', 'norm of a stage that the target does not give out'),
         (r'.*relative_position_index', 'fixed index, built by the model'))


def _merges_late(state: State) -> bool:
    """timm opens a stage with patch merging: the first stage has none."""
    return has(state, 'layers.1.downsample.') and not has(state, 'layers.0.downsample.')


def _canonical(state: State) -> State:
    return from_mmpretrain(state, Report('mmpretrain-swin', 'swin'))


def _to_timm(state: State) -> State:
    kept = {key: tensor for key, tensor in _canonical(state).items() if not key.endswith('relative_position_index')}
    return {
        re.sub(r'^layers\.(\d+)\.downsample', lambda match: f'layers.{int(match.group(1)) + 1}.downsample', key): tensor
        for key, tensor in kept.items()
    }


_AS_TIMM: Rules = (
    (r'(patch_embed|norm)\..*', r'\g<0>'),
    (_BLOCK + r'(.*)', r'\g<0>'),
    (r'layers\.\d+\.downsample\..*', r'\g<0>'),
    (r'head\.' + _WB, r'head.fc.\1'),
)
_AS_HF: Rules = (
    (r'patch_embed\.proj\.' + _WB, r'swin.embeddings.patch_embeddings.projection.\1'),
    (r'patch_embed\.norm\.' + _WB, r'swin.embeddings.norm.\1'),
    (r'absolute_pos_embed', 'swin.embeddings.position_embeddings'),
    (_BLOCK + r'norm1\.' + _WB, r'swin.encoder.layers.\1.blocks.\2.layernorm_before.\3'),
    (_BLOCK + r'norm2\.' + _WB, r'swin.encoder.layers.\1.blocks.\2.layernorm_after.\3'),
    (_BLOCK + r'attn\.qkv\.' + _WB, r'swin.encoder.layers.\1.blocks.\2.attention.self.@.\3'),
    (_BLOCK + r'attn\.proj\.' + _WB, r'swin.encoder.layers.\1.blocks.\2.attention.output.dense.\3'),
    (_BLOCK + r'attn\.relative_position_(bias_table|index)',
     r'swin.encoder.layers.\1.blocks.\2.attention.self.relative_position_\3'),
    (_BLOCK + r'mlp\.fc1\.' + _WB, r'swin.encoder.layers.\1.blocks.\2.intermediate.dense.\3'),
    (_BLOCK + r'mlp\.fc2\.' + _WB, r'swin.encoder.layers.\1.blocks.\2.output.dense.\3'),
    (r'layers\.(\d+)\.downsample\.(.*)', r'swin.encoder.layers.\1.downsample.\2'),
    (r'norm\.' + _WB, r'swin.layernorm.\1'),
    (r'head\.' + _WB, r'classifier.\1'),
)

#: Modules of the ops in the original, which timm and mmaction2 kept.
LORA = {op: 'attn.qkv' for op in 'qkv'} | {'proj': 'attn.proj', 'fc1': 'mlp.fc1', 'fc2': 'mlp.fc2'}
_LORA_MMPRETRAIN = {op: 'attn.w_msa.qkv' for op in 'qkv'} | {
    'proj': 'attn.w_msa.proj', 'fc1': 'ffn.layers.0.0', 'fc2': 'ffn.layers.1'}
_LORA_HF5 = {op: f'attention.{op}_proj' for op in 'qkv'} | {
    'proj': 'attention.o_proj', 'fc1': 'mlp.fc1', 'fc2': 'mlp.fc2'}
_LORA_HF4 = {op: f'attention.self.{name}' for op, name in zip('qkv', ('query', 'key', 'value'))} | {
    'proj': 'attention.output.dense', 'fc1': 'intermediate.dense', 'fc2': 'output.dense'}

_PROJ = 'patch_embed.proj.weight'
_HF_PROJECTION = 'embeddings.patch_embeddings.projection.weight'
ARCH = Arch(
    name='swin',
    families=('swin', ),
    adapt=to_target,
    initial=initial_keys,
    spare=SPARE,
    formats={
        'timm-swin':
        Format('swin', _PROJ, lambda s: s[_PROJ].ndim == 4 and has(s, 'layers.') and _merges_late(s), from_timm),
        'swin':
        Format('swin', _PROJ, lambda s: s[_PROJ].ndim == 4 and has(s, 'layers.'), from_original, words=ORIGINAL,
               aliases=('swin-22k', )),
        'hf-swin':
        Format('swin', _HF_PROJECTION, lambda s: s[_HF_PROJECTION].ndim == 4 and has(s, 'encoder.layers.0.blocks.'),
               from_hf, words=HF),
        'mmpretrain-swin':
        Format('swin', 'patch_embed.projection.weight', lambda s: has(s, 'stages.'), from_mmpretrain),
    },
    exports={
        'original': Export(((r'(patch_embed|layers|norm|head|absolute_pos_embed)(\..*)?', r'\g<0>'), ), _canonical),
        'timm': Export(_AS_TIMM, _to_timm),
        'hf': Export(_AS_HF, _canonical),
    },
    lora={
        'original': ('layers.{}.blocks.{}', LORA),
        'timm': ('layers.{}.blocks.{}', LORA),
        'mmpretrain': ('stages.{}.blocks.{}', _LORA_MMPRETRAIN),
        'hf': ('encoder.layers.{}.blocks.{}', _LORA_HF5),
        'hf4': ('encoder.layers.{}.blocks.{}', _LORA_HF4),
    },
)
