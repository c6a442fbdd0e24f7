# SPDX-License-Identifier: Apache-2.0
"""mmpretrain's MViT (MViT v2), specialised in place: pooled queries, keys and values, see
:mod:`mmpetl.backbones.pooled_attention`."""

from typing import Any, Optional

from mmcv.cnn.bricks.transformer import PatchEmbed
from mmpretrain.models.backbones import mvit as upstream
from torch import Tensor, nn

from .embed import SitedPatchEmbed
from .pooled_attention import PooledBlock, PooledProjections, pooled_family
from .windows import Size


class SitedMultiScaleAttention(PooledProjections, upstream.MultiScaleAttention):
    """(B, H * W, C) and (H, W) -> (B, H' * W', C') and (H', W')."""

    def pool(self, x: Tensor, by: nn.Module, grid: Size, norm: Optional[nn.Module] = None) -> Tensor:
        """(B, h, N, d) or (B, N, C) -> the same with N' tokens."""
        return upstream.attention_pool(x, by, grid, norm)[0]

    def place_bias(self, q: Tensor, q_grid: Size, k_grid: Size) -> Optional[Tensor]:
        """q (B, h, N', d) -> (B, h, N', K), or None."""
        if not self.rel_pos_spatial:
            return None
        zeros = q.new_zeros(*q.shape[:3], k_grid[0] * k_grid[1])
        return upstream.add_decomposed_rel_pos(zeros, q, q_grid, k_grid, self.rel_pos_h, self.rel_pos_w)


class SitedMultiScaleBlock(PooledBlock, upstream.MultiScaleBlock):
    """Block of mmpretrain's MViT."""


FAMILY = pooled_family(
    'mvit', upstream.MLP, {
        upstream.MultiScaleBlock: SitedMultiScaleBlock,
        upstream.MultiScaleAttention: SitedMultiScaleAttention,
        PatchEmbed: SitedPatchEmbed
    })


def build(**kwargs: Any) -> upstream.MViT:
    """mmpretrain's MViT."""
    return upstream.MViT(**kwargs)
