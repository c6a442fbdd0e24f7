# SPDX-License-Identifier: Apache-2.0
"""mmpretrain's ViTEVA02, specialised in place: rotary embeddings and gated feed-forward networks."""

from dataclasses import replace
from functools import partial
from typing import Any, Optional, Tuple

import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import PatchEmbed
from mmpretrain.models.backbones.vit_eva02 import AttentionWithRoPE, EVA02EndcoderLayer, ViTEVA02
from mmpretrain.models.utils.swiglu_ffn import SwiGLUFFN
from torch import Tensor, nn

from ..sites import ALL_OPS, CLIP_POINTS
from . import vit
from .attention import Rotation
from .block import Linear, SitedBlock, gated_feed_forward, of_swiglu
from .embed import SitedPatchEmbed
from .foreign import ForeignAttention, check_type, refuse, rotate_grid
from .released import with_positions


class SitedAttentionWithRoPE(ForeignAttention, AttentionWithRoPE):
    """(B, N, C) -> (B, N, C), q and k of the grid rotated."""

    def rotation(self, *context: Any) -> Optional[Rotation]:
        (grid, ) = context
        if self.rope is None:
            return None
        return rotate_grid(lambda x: self.rope(x, grid), grid[0] * grid[1])

    def forward(self, x: Tensor, patch_resolution: Tuple[int, int], prompts: Optional[Tensor] = None) -> Tensor:
        """x (B, N, C), the grid (H, W), prompts as keys and values only (1 or B, P, C) -> (B, N, C)."""
        return self.proj_drop(self.output(self.mix(x, prompts, patch_resolution)))


class SitedEVA02Layer(SitedBlock, EVA02EndcoderLayer):
    """Block of mmpretrain's ViTEVA02."""

    # A rotation comes after the bias, by another angle for every key.
    key_bias_cancels = False

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """(B, N, C) -> (B, N, C); the context is the grid (H, W)."""
        return self.attn(h, context[0], prompts)

    def grid_of(self, x: Tensor, *context: Any) -> Tuple[int, ...]:
        """The grid (H, W) of x (B, N, C), which the model hands along."""
        return tuple(context[0])

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        mlp = self.mlp
        gate, fc1 = (self.op_parameters(op) for op in ('gate', 'fc1'))
        y = gated_feed_forward(self.tap, gate, fc1, F.silu, mlp.norm, mlp.w3, h)
        return mlp.dropout_layer(mlp.gamma2(y))

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.drop_path

    def ffn_parameters(self, op: str) -> Linear:
        """See :class:`SitedBlock`."""
        return of_swiglu(self.mlp, op)

    def forward(self, x: Tensor, patch_resolution: Tuple[int, int]) -> Tensor:
        """x (B, N, C), the grid (H, W) -> (B, N, C)."""
        return self.run(x, patch_resolution)


def _check(model: ViTEVA02) -> None:
    for i, layer in enumerate(model.layers):
        check_type(f'layers.{i}.mlp', layer.mlp, SwiGLUFFN)
        if layer.mlp.add_identity:
            refuse(f'layers.{i}.mlp', layer.mlp, 'it adds an identity of its own')


FAMILY = replace(
    vit.FAMILY,
    name='eva02',
    # Side methods read keys of bare projections; here they are rotated first.
    points=vit.FAMILY.points - CLIP_POINTS - {'side'},
    classes={
        EVA02EndcoderLayer: SitedEVA02Layer,
        AttentionWithRoPE: SitedAttentionWithRoPE,
        PatchEmbed: SitedPatchEmbed
    },
    tokens_read=lambda model: None,
    sides={},
    clips={},
    specs=partial(vit.layer_specs, ffn_of=lambda layer: (ALL_OPS, layer.mlp.w3.in_features)),
    arch_of=None,
    check=_check,
    own_names=with_positions(class_token=True),
)


def build(arch: Any = 'tiny', **kwargs: Any) -> ViTEVA02:
    """mmpretrain's ViTEVA02."""
    return ViTEVA02(arch=arch, **kwargs)
