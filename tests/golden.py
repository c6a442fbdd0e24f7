# SPDX-License-Identifier: Apache-2.0
"""Arrays that published code has computed. They lie beside the checkout; what needs them is skipped where they do not.
Loaded by path, tests are no package."""

from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / 'shared/golden'


def golden_path(name):
    """The file of that name; the test is skipped where it is missing."""
    path = FOLDER / f'{name}.npz'
    if not path.is_file():
        pytest.skip(f'golden arrays are not beside the checkout ({path.name})')
    return path


def golden_tensors(name, kinds='fiub'):
    """Its arrays of these NumPy kinds as tensors, by name."""
    arrays = np.load(golden_path(name), allow_pickle=False)
    return {key: torch.from_numpy(value) for key, value in arrays.items() if value.dtype.kind in kinds}


def vit_names(sd, depth):
    """Weights of the reference's ViT of VPT and E2VPT (separate q, k, v) under mmpretrain's names."""
    out = {
        'cls_token': sd['embeddings.cls_token'], 'pos_embed': sd['embeddings.position_embeddings'],
        'patch_embed.projection.weight': sd['embeddings.patch_embeddings.weight'],
        'patch_embed.projection.bias': sd['embeddings.patch_embeddings.bias']}
    for kind in ('weight', 'bias'):
        out[f'ln1.{kind}'] = sd[f'encoder.encoder_norm.{kind}']
        for i in range(depth):
            ref, own = f'encoder.layer.{i}.', f'layers.{i}.'
            out[f'{own}attn.qkv.{kind}'] = torch.cat([sd[f'{ref}attn.{op}.{kind}'] for op in ('query', 'key', 'value')])
            for theirs, ours in (('attn.out', 'attn.proj'), ('attention_norm', 'ln1'), ('ffn_norm', 'ln2'),
                                 ('ffn.fc1', 'ffn.layers.0.0'), ('ffn.fc2', 'ffn.layers.1')):
                out[f'{own}{ours}.{kind}'] = sd[f'{ref}{theirs}.{kind}']
    return out


def e2vpt_names(sd, depth):
    """As :func:`vit_names`, with E2VPT's prompts, key/value prompts and masks."""
    out = vit_names(sd, depth)
    out.update({
        'petl.e2vpt.prompts.0': sd['prompt_embeddings'][0],
        'petl.e2vpt.token_mask': sd['prompt_soft_tokens_mask_cls_token'],
        'petl.e2vpt.segment_mask': sd['prompt_soft_tokens_pieces_mask_cls_token']})
    for i in range(depth):
        out[f'petl.e2vpt.kv_prompts.{i}'] = sd[f'encoder.layer.{i}.attn.deep_QKV_embeddings'][None]
        if i:
            out[f'petl.e2vpt.prompts.{i}'] = sd['deep_prompt_embeddings'][i - 1]
    return out
