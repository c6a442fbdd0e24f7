# SPDX-License-Identifier: Apache-2.0
"""timm's Hiera, specialised in place.

Upstream keeps tokens in an order in which pooling is a view. Methods see tokens row by row, so here the stream stays in
the order of the grid, and mask units are cut out of it as windows are. Queries are pooled behind their projection,
where methods have acted on them; prompts of each block act as keys and values only, and every block brings its own.
"""

import math
from typing import Any, List, Optional

import torch
from timm.layers import ClNormMlpClassifierHead, Mlp
from timm.models.hiera import Hiera, HieraBlock, MaskUnitAttention, PatchEmbed, Reroll, Unroll
from torch import Tensor, nn

from ..recompute import recomputed
from ..sites import CLIP_POINTS, POINTS, BlockSpec, Tap
from .attention import Projections, attend, gate_bias, join_extra, per_window
from .block import Linear, SitedBlock
from .family import Family, maps_have_no_prompts
from .foreign import check_type, refuse
from .form import TimmForm
from .timm_parts import SitedTimmNorm, check_mlp, mlp_parameters, run_mlp
from .windows import Size, from_windows, to_windows


def cells(x: Tensor, grid: Size, step: int) -> Tensor:
    """Tokens of a grid (..., H * W, C) -> (..., H / step, step, W / step, step, C)."""
    return x.unflatten(-2, (grid[0] // step, step, grid[1] // step, step))


def pooled(x: Tensor, grid: Size, step: int) -> Tensor:
    """Largest value of every step x step tokens of a grid, (..., H * W, C) -> (..., H * W / step**2, C)."""
    return cells(x, grid, step).amax((-4, -2)).flatten(-3, -2)


class SitedMaskUnitAttention(Projections, MaskUnitAttention):
    """Attention inside mask units or over all tokens: (B, H * W, C) -> (B, H' * W', C')."""

    @property
    def step(self) -> int:
        """Tokens along each axis of which queries keep one."""
        return math.isqrt(self.q_stride)

    @property
    def unit(self) -> Optional[Size]:
        """Mask unit at the entry, (h, w); None: attention sees all tokens."""
        side = math.isqrt(self.window_size * self.q_stride)
        return (side, side) if self.use_mask_unit_attn else None

    def forward(self, x: Tensor, grid: Size = (), prompts: Optional[Tensor] = None) -> Tensor:
        """x (B, H * W, C), (H, W), prompts as keys and values only (1 or B, P, C) -> (B, H' * W', C')."""
        step, unit = self.step, self.unit
        inner = grid if unit is None else unit
        if unit is not None:
            x = recomputed(to_windows, x, grid, unit, (0, 0))
        q, k, v = self.project(x)
        extra = join_extra(self.tap, self.of_prompts(prompts), self.heads)
        extra_keys = 0 if extra is None else extra[0].shape[-2]
        gate = gate_bias(self.tap, extra_keys + k.shape[1], 0 if prompts is not None else extra_keys)
        if gate is not None and len(gate) > 1:
            gate = gate.repeat_interleave(len(q) // len(gate), 0)
        channels = self.tap.channels(k.shape[1])
        if step > 1:
            q = recomputed(pooled, q, inner, step)
            # Further channels of queries are queries too.
            channels = None if channels is None else (pooled(channels[0], inner, step), channels[1])
        y = self.output(attend(q, k, v, self.heads, per_window(extra, len(q)), gate, channels=channels))
        if unit is None:
            return y
        return recomputed(from_windows, y, smaller(grid, step), smaller(unit, step), (0, 0))


def smaller(grid: Size, step: int) -> Size:
    """Sizes divided by ``step``."""
    return tuple(size // step for size in grid)


class SitedHieraBlock(SitedBlock, HieraBlock):
    """Block of Hiera: (B, H * W, C) -> (B, H' * W', C')."""

    def grid_of(self, x: Tensor, *context: Any) -> Size:
        """The grid (H, W) of x (B, H * W, C), which is fixed when the model is built."""
        return self.spec.grid

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """h (B, H * W, C) -> (B, H' * W', C')."""
        return recomputed(self.ls1, self.attn(h, self.spec.grid, prompts))

    def carried(self, x: Tensor, h: Tensor) -> Tensor:
        """The stream x (B, H * W, C), widened (from its norm h) and pooled as queries are -> (B, H' * W', C')."""
        if not self.do_expand:
            return x
        grid, step = self.spec.grid, self.attn.step
        self.tap.grid = smaller(grid, step)
        if self.proj is not None:
            return recomputed(pooled, self.proj(h), grid, step)
        return torch.cat([pooled(x, grid, step), cells(x, grid, step).mean((-4, -2)).flatten(-3, -2)], -1)

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.ls2(run_mlp(self.tap, self.mlp, h))

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.drop_path1 if sub == 'attn' else self.drop_path2

    def ffn_parameters(self, op: str) -> Linear:
        """See :class:`SitedBlock`."""
        return mlp_parameters(self.mlp, op)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, H * W, C) -> (B, H' * W', C')."""
        return self.run(x)


class SitedUnroll(Unroll):
    """Leaves tokens in the order of the grid."""

    def forward(self, x: Tensor) -> Tensor:
        """x (B, N, C) -> the same."""
        return x


class SitedReroll(Reroll):
    """Gives tokens the shape of their grid, in whose order they are."""

    def forward(self, x: Tensor, block_idx: int, mask: Optional[Tensor] = None) -> Tensor:
        """x (B, H * W, C), mask None -> (B, H, W, C)."""
        return x.unflatten(1, tuple(self.schedule[block_idx][1]))


class SitedHieraPatchEmbed(PatchEmbed):
    """(B, 3, H, W) -> (B, H' * W', C)."""

    tap: Tap

    def forward(self, x: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """x (B, 3, H, W) -> (B, H' * W', C).

        Raises:
            ValueError: If there is a mask, after which no grid is left.
        """
        if mask is not None:
            raise ValueError('Hiera: masks are not supported once methods are attached; leave mask out')
        return self.tap.norm('embed', super().forward(x))


def _check(model: Hiera) -> None:
    check_type('head', model.head, ClNormMlpClassifierHead)
    if len(model.q_stride) != 2 or len(set(model.q_stride)) != 1:
        refuse('unroll', model.unroll, f'queries are pooled by {tuple(model.q_stride)}, known are squares of pictures')
    if model.q_pool != len(model.stage_ends) - 1:
        refuse('unroll', model.unroll, 'not every stage pools, so the model gives its tokens out of order')
    if model.patch_drop_rate:
        refuse('unroll', model.unroll, 'tokens that are dropped at random have no place in the grid')
    grid = tuple(model.tokens_spatial_shape)
    for i, block in enumerate(model.blocks):
        check_type(f'blocks.{i}.mlp', block.mlp, Mlp)
        check_mlp(f'blocks.{i}.mlp', block.mlp)
        flat = block.attn.window_size * block.attn.q_stride
        side = math.isqrt(flat)
        if block.attn.use_mask_unit_attn and (side**2 != flat or any(n % side for n in grid)
                                              or model.q_stride[0]**len(model.unroll.schedule) % side):
            refuse(f'blocks.{i}.attn', block.attn, f'its mask units of {flat} tokens are no squares of the grid {grid}')
        for name in ('ls1', 'ls2'):
            if getattr(getattr(block, name), 'inplace', False):
                refuse(f'blocks.{i}.{name}', getattr(block, name), 'it scales in place')
        grid = smaller(grid, math.isqrt(block.attn.q_stride))


def _specs(model: Hiera) -> List[BlockSpec]:
    specs: List[BlockSpec] = []
    grid = tuple(model.tokens_spatial_shape)
    for i, block in enumerate(model.blocks):
        attn, widens = block.attn, block.dim != block.dim_out
        side = math.isqrt(attn.window_size * attn.q_stride)
        specs.append(
            BlockSpec(
                index=i,
                stage=specs[-1].stage + widens if specs else 0,
                dim=block.dim_out,
                heads=attn.heads,
                ffn_dim=block.mlp.fc2.in_features,
                grid=grid,
                window=(side, side) if attn.use_mask_unit_attn else None,
                patch=tuple(model.patch_stride),
                key_bias=attn.qkv.bias is not None,
                dim_in=block.dim if widens else 0,
                pools=attn.q_stride > 1))
        grid = smaller(grid, math.isqrt(attn.q_stride))
    return specs


class FormHiera(TimmForm, Hiera):
    """Hiera as backbone."""

    def map_of(self, x: Tensor) -> Size:
        """The grid of the last tokens, (H', W')."""
        last = self.petl.blocks[-1]
        return smaller(last.spec.grid, last.attn.step)


FAMILY = Family(
    name='timm_hiera',
    # Side methods need blocks of one width.
    points=frozenset(POINTS) - CLIP_POINTS - {'side'},
    global_attention=False,
    classes={
        HieraBlock: SitedHieraBlock,
        MaskUnitAttention: SitedMaskUnitAttention,
        Unroll: SitedUnroll,
        Reroll: SitedReroll,
        PatchEmbed: SitedHieraPatchEmbed
    },
    forms={Hiera: FormHiera},
    blocks=lambda model: list(model.blocks),
    specs=_specs,
    embed=lambda model: model.patch_embed,
    embed_parameters=lambda model: (model.patch_embed.proj.weight, model.patch_embed.proj.bias),
    final_norm=lambda model: model.head.norm,
    final_class=SitedTimmNorm,
    check=_check,
    check_prompts=maps_have_no_prompts,
    own_names=lambda model, state: state,
    # The norm in front of it is of the base.
    head=('head.fc', ),
)
