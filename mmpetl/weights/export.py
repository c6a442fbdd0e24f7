# SPDX-License-Identifier: Apache-2.0
"""Merged backbones under the names of other libraries: timm, Hugging Face, OpenAI / open_clip, the original
repositories.

The inverse of :mod:`mmpetl.weights.convert`. A key that the other library has no name for is an error, never dropped.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch

from .archs import ALL_ARCHS, ARCHS, known_elsewhere
from .match_report import shorten
from .rename import State, depth


def libraries(arch: str) -> list[str]:
    """Libraries whose names are known for an architecture."""
    return sorted(ALL_ARCHS[arch].exports) if arch in ALL_ARCHS else []


def export_names(state: Mapping[str, torch.Tensor], arch: str, library: str) -> State:
    """Rename a merged backbone for another library.

    Args:
        state (Mapping): Base under mmpretrain's or mmaction2's names, without prefix and without ``petl.*``. May hold
            ``head.weight`` and ``head.bias`` (classes, C) and, for CLIP, ``proj`` (C, embedding).
        arch (str): One of :data:`mmpetl.weights.archs.ARCHS`.
        library (str): 'timm', 'hf', 'openai' or 'original'. 'hf' means the names of files on the hub, which every
            version of transformers opens.

    Returns:
        dict: Tensors under the library's names; ViT with layer scale in 'hf' becomes DINOv2.

    Raises:
        ValueError: No table for that pair, or a key that the library has no name for.
    """
    if library not in libraries(arch):
        raise ValueError(f'no export of {arch!r} to {library!r}; known for it: {", ".join(libraries(arch)) or "none"}')
    # Other libraries have no place for methods; leaving them out would be another model.
    unmerged = [key for key in state if key.startswith('petl.')]
    if unmerged:
        raise ValueError(f'{unmerged[0]}: merge the adapter into the backbone before exporting it')
    export = known_elsewhere(state, arch, library).exports[library]
    compiled = [(re.compile(pattern), new) for pattern, new in export.rules]
    renamed: State = {}
    strays = []
    for key, tensor in export.prepare(dict(state)).items():
        # The first rule that matches the whole key decides.
        hit = next(((match, new) for pattern, new in compiled if (match := pattern.fullmatch(key))), None)
        if hit is None:
            strays.append(key)
            continue
        renamed.update(_split(hit[0].expand(hit[1]), tensor))
    if strays:
        raise ValueError(f'{library} has no name for {shorten(strays)} of {arch!r}')
    # Parts of a fused tensor are views of it; a file would store the whole for each.
    return {key: tensor.contiguous() for key, tensor in renamed.items()}


def _split(name: str, tensor: torch.Tensor) -> State:
    if '@' not in name:
        return {name: tensor}
    # CLIP says q_proj, ViT says query.
    words = ('q', 'k', 'v') if '@_proj' in name else ('query', 'key', 'value')
    return {name.replace('@', word): part for word, part in zip(words, tensor.chunk(3))}


def has_hf_config(state: Mapping[str, torch.Tensor], arch: str) -> bool:
    """Whether :func:`hf_config` knows the config of an architecture."""
    known = known_elsewhere(state, arch, 'hf').exports.get('hf') if arch in ALL_ARCHS else None
    return known is not None and known.config is not None


def hf_config(state: Mapping[str, torch.Tensor],
              arch: str,
              num_heads: int,
              eps: float = 1e-6,
              **more: Any) -> dict[str, Any]:
    """The ``config.json`` with which transformers opens the result of ``export_names(state, arch, 'hf')``.

    Args:
        state (Mapping): As for :func:`export_names`.
        arch (str): An architecture whose config is known.
        num_heads (int): Attention heads per block, which no tensor tells.
        eps (float): Epsilon of the LayerNorms; 1e-5 for CLIP.
        **more: Entries that are added or replaced, such as ``id2label``; VideoMAE needs ``image_size`` and
            ``num_frames``.

    Transformers builds VideoMAE's norm after pooling with epsilon 1e-5 whatever the config says: logits differ by about
    1e-5 of their size from a model with 1e-6.

    Raises:
        ValueError: Another architecture.
    """
    if not has_hf_config(state, arch):
        able = sorted(name for name, other in ARCHS.items() if 'hf' in other.exports and other.exports['hf'].config)
        raise ValueError(f'no transformers config for {arch!r}; known: {", ".join(able)}')
    known = known_elsewhere(state, arch, 'hf')
    finish = known.exports['hf'].config
    assert finish is not None
    # Sizes are read off the tensors, so that config and weights cannot disagree.
    kernel = state['patch_embed.projection.weight']
    config = finish(dict(state), dict(
        hidden_size=kernel.shape[0],
        num_hidden_layers=depth(state, known.stem),
        num_attention_heads=num_heads,
        intermediate_size=state[f'{known.stem}.0.{known.fc1}.weight'].shape[0],
        patch_size=kernel.shape[-1],
        num_channels=kernel.shape[1],
        layer_norm_eps=eps))
    if 'head.weight' in state:
        config['num_labels'] = state['head.weight'].shape[0]
    return config | more
