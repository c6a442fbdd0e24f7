# SPDX-License-Identifier: Apache-2.0
"""All architectures of weights, by name. A new one is its file and one entry here."""

from collections.abc import Mapping
from typing import Any

from . import clip, swin, video_swin, videomae, vit
from .arch import Arch, Format

#: Architectures of backbones, by name.
ARCHS: dict[str, Arch] = {
    arch.name: arch for arch in (vit.ARCH, clip.ARCH, videomae.ARCH, swin.ARCH, video_swin.ARCH)}
#: The same and those under which only other libraries know them.
ALL_ARCHS: dict[str, Arch] = {**ARCHS, vit.LAYER_SCALED.name: vit.LAYER_SCALED}
#: Published formats, by name; a file is of the first that fits it.
FORMATS: dict[str, Format] = {name: known for arch in ARCHS.values() for name, known in arch.formats.items()}
#: Other names under which people know a format.
ALIASES: dict[str, str] = {alias: name for name, known in FORMATS.items() for alias in known.aliases}


def known_elsewhere(state: Mapping[str, Any], arch: str, library: str) -> Arch:
    """The architecture as which a library knows the weights of a backbone.

    Args:
        state (Mapping): Keys of the backbone, mmpretrain's or mmaction2's.
        arch (str): One of :data:`ALL_ARCHS`.
        library (str): As for :func:`mmpetl.weights.export.export_names`.

    Raises:
        ValueError: No other library's names are known for the architecture.
    """
    if arch not in ALL_ARCHS:
        raise ValueError(f'no names of {library!r} are known for {arch!r}, but for {", ".join(sorted(ALL_ARCHS))}: '
                         'keep the adapter file, or export to safetensors or onnx')
    # transformers, for one, knows ViT with layer scale as DINOv2.
    return ALL_ARCHS[arch].elsewhere(state, library) or ALL_ARCHS[arch]
