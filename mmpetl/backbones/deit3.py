# SPDX-License-Identifier: Apache-2.0
"""mmpretrain's DeiT3, specialised in place: a ViT with LayerScale whose class token joins behind the position table.

mmpretrain (up to 1.2.0) norms the input of the feed-forward network by ``ln1``, and never reads ``ln2``. Its outputs
are followed. Published DeiT III weights were trained with both norms: for them take timm's ``deit3_*``.
"""

import warnings
from dataclasses import replace
from typing import Any, Tuple

from mmcv.cnn.bricks.transformer import PatchEmbed
from mmpretrain.models.backbones.deit3 import DeiT3, DeiT3FFN, DeiT3TransformerEncoderLayer
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn

from ..sites import CLIP_POINTS
from . import vit
from .embed import SitedPatchEmbed
from .foreign import check_type, table_with_shift
from .released import with_positions


class SitedDeiT3Layer(vit.EncoderLayer, DeiT3TransformerEncoderLayer):
    """Block of mmpretrain's DeiT3."""

    @property
    def norm1(self) -> nn.Module:
        return self.ln1

    @property
    def norm2(self) -> nn.Module:
        return self.ln1  # as upstream computes, see above


class SideDeiT3(vit.SideViT, DeiT3):
    """A DeiT3 for side methods."""


def _check(model: DeiT3) -> None:
    for i, layer in enumerate(model.layers):
        check_type(f'layers.{i}.ffn', layer.ffn, DeiT3FFN)
        if layer.ffn.num_fcs != 2:
            raise ValueError(f'layers.{i}.ffn: only two-layer feed-forward networks can be adapted')
    # Once per process: it is upstream's matter, but users should know why scores are low.
    warnings.warn("mmpretrain's DeiT3 norms the feed-forward network's input by ln1 and never reads ln2; with "
                  "published DeiT III weights take timm's deit3 models (mmpetl.TIMM)", stacklevel=2)


def _fold_embed_shift(model: DeiT3, shift: Tensor) -> Tuple[Tensor, Tensor]:
    return table_with_shift(model.pos_embed, 0, shift)


FAMILY = replace(
    vit.FAMILY,
    name='deit3',
    # The class token joins behind the dropout that is the entry elsewhere.
    points=vit.FAMILY.points - CLIP_POINTS,
    entry=lambda model: None,
    entry_class=None,
    classes={
        DeiT3TransformerEncoderLayer: SitedDeiT3Layer,
        MultiheadAttention: vit.SitedMultiheadAttention,
        PatchEmbed: SitedPatchEmbed
    },
    sides={DeiT3: SideDeiT3},
    clips={},
    fold_embed_shift=_fold_embed_shift,
    arch_of=None,
    check=_check,
    own_names=with_positions(class_token=False),
)


def build(arch: Any = 'base', **kwargs: Any) -> DeiT3:
    """mmpretrain's DeiT3."""
    return DeiT3(arch=arch, **kwargs)
