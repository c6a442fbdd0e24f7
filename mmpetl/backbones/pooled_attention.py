# SPDX-License-Identifier: Apache-2.0
"""Attention whose queries, keys and values are pooled behind their projections: what the MViTs of mmpretrain and
mmaction2 share.

Methods act before pooling, on tokens of the grid; finished keys and values join behind it and have no place. Prompts
would have to pass convolutions over a grid in which they have no place, so they are not defined.

Li et al., "MViTv2", https://arxiv.org/abs/2112.01526, section 3.
"""

import math
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import recomputed
from ..sites import CLIP_POINTS, POINTS, BlockSpec
from .attention import KeysValues, Projections, gate_bias, merge_heads, prepend, split_heads
from .block import SitedBlock
from .embed import SitedFinalNorm
from .family import Family
from .foreign import check_type, gelu_network, refuse
from .released import own_part
from .windows import Size


def pooled_grid(grid: Size, pool: Any) -> Size:
    """The grid behind a convolution or maximum over ``grid``."""
    parts = (tuple(v) if isinstance(v, (tuple, list)) else (v, ) * len(grid)
             for v in (pool.kernel_size, pool.stride, pool.padding))
    return tuple((n + 2 * p - k) // s + 1 for n, k, s, p in zip(grid, *parts))


class PooledProjections(Projections):
    """Mixin: (B, front + N, C) -> (B, front + N', C'), N tokens of the grid behind the leading ones."""

    num_heads: int
    residual_pooling: bool

    def pool(self, x: Tensor, by: nn.Module, grid: Size, norm: Optional[nn.Module] = None) -> Tensor:
        """(B, h, front + N, d) or (B, front + N, C) -> the same with N' tokens; leading tokens stay."""
        raise NotImplementedError

    def place_bias(self, q: Tensor, q_grid: Size, k_grid: Size) -> Optional[Tensor]:
        """What places add to the logits of pooled queries (B, h, N', d): (B, h, N', K) over pooled keys, or None."""
        raise NotImplementedError

    def forward(self, x: Tensor, in_size: Size) -> Tuple[Tensor, Size]:
        """x (B, front + N, C) and the grid of N -> (B, front + N', C') and the grid of N'."""
        q, k, v = (self._pooled(op, t, in_size) for op, t in zip('qkv', self.project(x)))
        q_grid, k_grid = (pooled_grid(in_size, pool) for pool in (self.pool_q, self.pool_k))
        y = recomputed(merge_heads, self._attend(q, k, v, self.tap.kv(), q_grid, k_grid))
        return self.output(y), q_grid

    def _pooled(self, op: str, x: Tensor, grid: Size) -> Tensor:
        return self.pool(split_heads(x, self.num_heads), getattr(self, f'pool_{op}'), grid, getattr(self, f'norm_{op}'))

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, extra: KeysValues, q_grid: Size, k_grid: Size) -> Tensor:
        """Pooled queries (B, h, N', d), keys and values (B, h, K, d) -> (B, h, N', d)."""
        bias, own = self.place_bias(q, q_grid, k_grid), k.shape[2]
        k, v = prepend(extra, k, v)
        gate = gate_bias(self.tap, k.shape[2], 0)
        if bias is not None:
            bias = F.pad(bias, (k.shape[2] - own, 0))
            gate = bias if gate is None else gate + bias
        # Norms may be float32 where products are not, and the kernels want one type.
        k, v, gate = (t if t is None else t.to(q.dtype) for t in (k, v, gate))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=gate)
        if not self.residual_pooling:
            return y
        front = q.shape[2] - math.prod(q_grid)
        return y + (F.pad(q[:, :, front:], (0, 0, front, 0)) if front else q)


class PooledBlock(SitedBlock):
    """Mixin: (B, front + N, C) and the grid of N -> (B, front + N', C') and the grid of N'."""

    # Pooling and a norm stand behind the bias.
    key_bias_cancels = False

    def grid_of(self, x: Tensor, *context: Any) -> Size:
        """The grid at the entry of x (B, front + N, C), which upstream hands along."""
        return context[0]

    def attention(self, h: Tensor, prompts: Optional[Tensor], *context: Any) -> Tensor:
        """h (B, front + N, C), the context is the grid -> (B, front + N', C')."""
        return self.attn(h, context[0])[0]

    def carried(self, x: Tensor, h: Tensor) -> Tensor:
        """The stream x (B, front + N, C), widened from its norm h and pooled -> (B, front + N', C')."""
        grid = self.tap.grid
        self.tap.grid = pooled_grid(grid, self.attn.pool_q)
        if self.proj is not None:
            x = self.proj(h)
        return x if self.pool_skip is None else recomputed(self.attn.pool, x, self.pool_skip, grid)

    def feed_forward(self, h: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return gelu_network(self.tap, self.mlp.fc1, self.mlp.act, self.mlp.fc2, h)

    def drop_path_of(self, sub: str) -> nn.Module:
        return self.drop_path

    def forward(self, x: Tensor, in_size: Size) -> Tuple[Tensor, Size]:
        """x (B, front + N, C) and the grid of N -> (B, front + N', C') and the grid of N'."""
        grid = tuple(in_size)
        return self.run(x, grid), pooled_grid(grid, self.attn.pool_q)


def _specs(model: nn.Module) -> List[BlockSpec]:
    specs: List[BlockSpec] = []
    grid, front = tuple(model.patch_resolution), int(getattr(model, 'with_cls_token', False))
    for i, block in enumerate(model.blocks):
        after = pooled_grid(grid, block.attn.pool_q)
        specs.append(
            BlockSpec(
                index=i,
                stage=sum(i >= first for first in model.downscale_indices),
                dim=block.out_dims,
                heads=block.attn.num_heads,
                ffn_dim=block.mlp.fc1.out_features,
                extra_tokens=front,
                grid=grid,
                patch=tuple(model.patch_embed.projection.stride),
                key_bias=block.attn.qkv.bias is not None,
                dim_in=block.in_dims if block.in_dims != block.out_dims else 0,
                pools=after != grid,
                pools_keys=True))
        grid = after
    return specs


def _check(mlp: type) -> Callable[[nn.Module], None]:
    def check(model: nn.Module) -> None:
        for i, block in enumerate(model.blocks):
            check_type(f'blocks.{i}.mlp', block.mlp, mlp)
            if block.proj is not None and not block.dim_mul_in_attention:
                refuse(f'blocks.{i}.mlp', block.mlp, 'it widens the stream (dim_mul_in_attention=False)')

    return check


def fit_tables(model: nn.Module, state: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The backbone's part of a file, tables of distances (entries, d) resized to the model's grid, linearly, as
    upstream does for other inputs at run time."""
    inside, own = own_part(model, state), model.state_dict()
    for name, table in inside.items():
        if 'attn.rel_pos_' in name and name in own and len(table) != len(own[name]):
            inside[name] = F.interpolate(table.t()[None], size=len(own[name]), mode='linear')[0].t()
    return inside


def pooled_family(name: str, mlp: type, classes: Dict[type, type]) -> Family:
    """The description of one of the MViTs.

    Args:
        name: Of its file.
        mlp: Upstream's class of the feed-forward networks.
        classes: Upstream class -> specialised class.
    """
    return Family(
        name=name,
        # Side methods need blocks of one width.
        points=frozenset(POINTS) - CLIP_POINTS - {'side', 'prompts'},
        global_attention=False,
        classes=classes,
        blocks=lambda model: list(model.blocks),
        specs=_specs,
        embed=lambda model: model.patch_embed,
        embed_parameters=lambda model: (model.patch_embed.projection.weight, model.patch_embed.projection.bias),
        final_norm=lambda model: getattr(model, f'norm{model.num_scales - 1}', None),
        final_class=SitedFinalNorm,
        check=_check(mlp),
        own_names=fit_tables)
