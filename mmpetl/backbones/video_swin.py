# SPDX-License-Identifier: Apache-2.0
"""mmaction2's SwinTransformer3D (Video Swin), specialised in place."""

from typing import Any, List, Optional, Sequence, Tuple

from mmaction.models.backbones.swin import (
    PatchEmbed3D,
    SwinTransformer3D,
    SwinTransformerBlock3D,
    WindowAttention3D,
    get_window_size,
)
from torch import Tensor, nn

from ..recompute import LOOK_UP, recomputed
from ..sites import CLIP_POINTS, POINTS, BlockSpec, Tap
from .attention import Projections, attend_windows, gate_bias, join_extra, relative_position_bias
from .block import SitedBlock, feed_forward
from .embed import SitedFinalNorm
from .family import Family
from .windows import from_windows, to_windows


class SitedWindowAttention3D(Projections, WindowAttention3D):
    """Attention inside windows: (B * windows, N, C) -> same shape."""

    def forward(self,
                x: Tensor,
                mask: Optional[Tensor] = None,
                windows: Sequence[int] = (),
                shifted: Sequence[bool] = ()) -> Tensor:
        """x (B * windows, N, C), mask (windows, N, N) or None -> (B * windows, N, C)."""
        n = x.shape[1]
        q, k, v = self.project(x)
        bias = recomputed(
            relative_position_bias,
            self.relative_position_bias_table,
            # Short clips have smaller windows, whose pairs stand in the upper left, as upstream reads them.
            self.relative_position_index[:n, :n],
            level=LOOK_UP)
        extra = join_extra(self.tap, None, self.num_heads)
        # Extra keys come first, and so does what hides the padding of those that samples of a batch have of their own.
        gate = gate_bias(self.tap, k.shape[1] + (0 if extra is None else extra[0].shape[-2]), 0)
        if gate is not None and len(gate) > 1:
            gate = gate.repeat_interleave(len(q) // len(gate), 0)
        y = attend_windows(
            q, k, v, self.num_heads, bias, mask, windows, shifted, 0, extra,
            self.attn_drop.p if self.training else 0., self.scale, gate, self.tap.channels(n))
        return self.proj_drop(self.output(y))


class SitedSwinBlock3D(SitedBlock, SwinTransformerBlock3D):
    """Block of SwinTransformer3D: (B, T, H, W, C) -> same shape."""

    # A bias of (heads, N, N) for every block and group of windows is looked up from a small table.
    least_level = LOOK_UP

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """h (B, T, H, W, C) -> same shape; the context is the shift mask (windows, N, N)."""
        grid = h.shape[1:4]
        # Upstream's rule: along an axis that is no longer than the window there is one window and no shift.
        size, shift = get_window_size(tuple(grid), self.window_size, self.shift_size)
        padded = tuple(-(-g // s) * s for g, s in zip(grid, size))
        windows, shifted = tuple(p // s for p, s in zip(padded, size)), tuple(s > 0 for s in shift)
        # Padding comes after the norm, so padded tokens are exact zeros.
        x = recomputed(to_windows, h.flatten(1, 3), tuple(grid), size, shift)
        # Upstream makes the mask once per stage, also for its unshifted blocks.
        y = self.attn(x, context[0] if any(shifted) else None, windows, shifted)
        return recomputed(from_windows, y, tuple(grid), size, shift).view_as(h)

    def grid_of(self, x: Tensor, *context: Any) -> Tuple[int, ...]:
        """The grid (T, H, W) of x (B, T, H, W, C)."""
        return tuple(x.shape[1:4])

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B, T, H, W, C) -> same shape."""
        mlp = self.mlp
        return feed_forward(self.tap, mlp.fc1, mlp.act, mlp.drop, mlp.fc2, mlp.drop, h)

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.drop_path

    def forward(self, x: Tensor, mask_matrix: Optional[Tensor]) -> Tensor:
        """x (B, T, H, W, C), mask_matrix (windows, N, N) -> (B, T, H, W, C)."""
        return self.run(x, mask_matrix)


class SitedPatchEmbed3D(PatchEmbed3D):
    """(B, 3, T, H, W) -> (B, C, T', H', W')."""

    tap: Tap

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, T, H, W) -> (B, C, T', H', W')."""
        x = super().forward(x)
        return self.tap.norm('embed', x.movedim(1, -1)).movedim(-1, 1)


def _blocks(model: SwinTransformer3D) -> List[nn.Module]:
    return [block for layer in model.layers for block in layer.blocks]


def _specs(model: SwinTransformer3D) -> List[BlockSpec]:
    # The clip's size is known only at run time, so the grid stays open.
    return [
        BlockSpec(
            index=i,
            stage=s,
            dim=block.embed_dims,
            heads=block.num_heads,
            ffn_dim=block.mlp.fc1.out_features,
            window=tuple(block.window_size),
            patch=tuple(model.patch_embed.proj.kernel_size),
            key_bias=block.attn.qkv.bias is not None)
        for i, (s, block) in enumerate((s, b) for s, layer in enumerate(model.layers) for b in layer.blocks)
    ]


def _embed_parameters(model: SwinTransformer3D) -> Tuple[Tensor, Optional[Tensor]]:
    owner = model.patch_embed.proj if model.patch_embed.norm is None else model.patch_embed.norm
    return owner.weight, owner.bias


FAMILY = Family(
    name='video_swin',
    points=frozenset(POINTS) - CLIP_POINTS - {'prompts', 'side'},
    global_attention=False,
    classes={
        SwinTransformerBlock3D: SitedSwinBlock3D,
        WindowAttention3D: SitedWindowAttention3D,
        PatchEmbed3D: SitedPatchEmbed3D
    },
    blocks=_blocks,
    specs=_specs,
    embed=lambda model: model.patch_embed,
    embed_parameters=_embed_parameters,
    final_norm=lambda model: getattr(model, f'norm{model.num_layers - 1}', None),
    final_class=SitedFinalNorm,
)


def build(**kwargs: Any) -> SwinTransformer3D:
    """mmaction2's SwinTransformer3D; ``pretrained2d`` (whose default makes init_weights fail without a file) is off."""
    return SwinTransformer3D(**{'pretrained2d': False, **kwargs})
