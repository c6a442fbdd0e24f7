# SPDX-License-Identifier: Apache-2.0
"""mmaction2's MViT (MViT v2), specialised in place: pooled queries, keys and values, see
:mod:`mmpetl.backbones.pooled_attention`."""

from typing import Any, Optional, Tuple

from mmaction.models.backbones import mvit as upstream
from mmaction.models.utils.embed import PatchEmbed3D
from torch import Tensor, nn

from ..sites import Tap
from .pooled_attention import PooledBlock, PooledProjections, pooled_family
from .windows import Size


class SitedMultiScaleAttention(PooledProjections, upstream.MultiScaleAttention):
    """(B, front + T * H * W, C) and (T, H, W) -> (B, front + T' * H' * W', C') and (T', H', W')."""

    def pool(self, x: Tensor, by: nn.Module, grid: Size, norm: Optional[nn.Module] = None) -> Tensor:
        """(B, h, front + N, d) or (B, front + N, C) -> the same with N' tokens."""
        return upstream.attention_pool(x, by, grid, self.with_cls_token, norm)[0]

    def place_bias(self, q: Tensor, q_grid: Size, k_grid: Size) -> Optional[Tensor]:
        """q (B, h, front + N', d) -> (B, h, front + N', front + K), or None."""
        if not self.rel_pos_embed:
            return None
        zeros = q.new_zeros(*q.shape[:3], self.with_cls_token + k_grid[0] * k_grid[1] * k_grid[2])
        return upstream.add_decomposed_rel_pos(zeros, q, q_grid, k_grid, self.rel_pos_h, self.rel_pos_w,
                                               self.rel_pos_t, self.with_cls_token)


class SitedMultiScaleBlock(PooledBlock, upstream.MultiScaleBlock):
    """Block of mmaction2's MViT."""


class SitedPatchEmbed3D(PatchEmbed3D):
    """(B, 3, T, H, W) -> (B, T' * H' * W', C) and (T', H', W')."""

    tap: Tap

    def forward(self, x: Tensor) -> Tuple[Tensor, Size]:
        """x (B, 3, T, H, W) -> (B, T' * H' * W', C) and (T', H', W')."""
        x, grid = super().forward(x)
        self.tap.run_time.grid = tuple(grid)
        return self.tap.norm('embed', x), grid


FAMILY = pooled_family(
    'video_mvit', upstream.MLP, {
        upstream.MultiScaleBlock: SitedMultiScaleBlock,
        upstream.MultiScaleAttention: SitedMultiScaleAttention,
        PatchEmbed3D: SitedPatchEmbed3D
    })


def build(**kwargs: Any) -> upstream.MViT:
    """mmaction2's MViT."""
    return upstream.MViT(**kwargs)
