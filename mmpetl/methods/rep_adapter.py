# SPDX-License-Identifier: Apache-2.0
"""RepAdapter: a linear bottleneck before both sublayers that merges into the layers behind it.

Luo et al., "Towards Efficient Visual Adaption via Structural Re-parameterization", https://arxiv.org/abs/2302.08106,
sections 3.2 and 3.3::

    z <- z + s (B dropout(A z + a) + b)        z: the normed input of the sublayer

``A`` (mid_dims, C) is dense; ``B`` (C, mid_dims) is sparse: one block for each of ``groups`` groups of channels. There
is no activation, so that W z + w behind it becomes W (I + s B A) z + s W (B a + b) + w. ``A`` is Xavier-uniform, all
else zero: the start is exact.
"""

from typing import Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import SUBS, BlockSpec, Layers, Method, PerLayer, add_product, check_ops, positive

#: The norm before a sublayer.
NORM_OF = dict(attn='norm1', ffn='norm2')
#: The sublayer behind a norm, or that of an op that reads it.
SUB_OF = dict(norm1='attn', q='attn', k='attn', v='attn', norm2='ffn', fc1='ffn', gate='ffn')


def keeps(spec: BlockSpec) -> bool:
    """Whether q, k and v cannot take in what stands at their norm: window attention may pad a block's normed map with
    zeros, which no bias has touched, or the layer that widens the stream beside attention reads the norm too."""
    pads = spec.window and (not spec.grid or any(n % w for n, w in zip(spec.grid, spec.window)))
    return bool(spec.dim_in or pads)


def merge_before(weight: Tensor, bias: Optional[Tensor], left: Tensor, right: Tensor,
                 shift: Tensor) -> Tuple[Tensor, Tensor]:
    """weight (Cout, C) and bias (Cout) of an op -> both with left (C, M) right (M, C) z + shift (C) taken in, which is
    added to what the op reads, z."""
    # From the left: the (C, C) product is never formed.
    moved = weight @ shift
    return weight + (weight @ left) @ right, moved if bias is None else bias + moved


class DenseSparse(nn.Module):
    """``down`` (mid, C) with its bias, and ``up`` (C, mid / groups), the rows of the blocks of B, with its bias."""

    def __init__(self, dim: int, mid_dims: int, groups: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, mid_dims)
        self.up = nn.Parameter(torch.empty(dim, mid_dims // groups))
        self.up_bias = nn.Parameter(torch.empty(dim))
        # Rows and columns of the same group form a block of B; everything else is masked out.
        of_row = torch.arange(dim) // (dim // groups)
        of_column = torch.arange(mid_dims) // (mid_dims // groups)
        # Follows from the sizes, so it is not stored.
        self.register_buffer('outside', of_row[:, None] != of_column, persistent=False)
        self.groups = groups

    def reset_parameters(self) -> None:
        """The published start."""
        nn.init.xavier_uniform_(self.down.weight)
        for zero in (self.down.bias, self.up, self.up_bias):
            nn.init.zeros_(zero)

    def dense(self, up: Tensor) -> Tensor:
        """Rows of the blocks (C, M / groups) -> B (C, M)."""
        # A dense B with zeros, so that one product serves all groups.
        return up.repeat(1, self.groups).masked_fill(self.outside, 0.) if self.groups > 1 else up


@METHODS.register_module()
class RepAdapter(Method):
    """Re-parameterisable adapter.

    Args:
        specs: Blocks of the backbone.
        mid_dims: Hidden width; per layer where wanted.
        groups: Groups of the second projection.
        scale: Factor s of the branch; per layer where wanted.
        drop_rate: Dropout on the hidden units.
        subs: Sublayers before which an adapter stands; 'attn' alone is the published attention-only form.
        layers: Adapted blocks.

    Raises:
        ValueError: If ``mid_dims`` < 1, ``groups`` does not divide a width, or a sublayer is unknown.
    """

    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 mid_dims: PerLayer = 8,
                 groups: int = 2,
                 scale: PerLayer = 1.0,
                 drop_rate: float = 0.1,
                 subs: Union[str, Sequence[str]] = SUBS,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        self.refuse_post_norm('are read by no layer')
        self.subs = check_ops(subs, 'RepAdapter: subs', SUBS)
        mids, groups = self.spread(mid_dims, 'mid_dims', positive), positive(groups, 'groups', 'RepAdapter')
        self.scales = {i: float(s) for i, s in self.spread(scale, 'scale').items()}
        for i in self.layers:
            width = self.specs[i].entry_dim
            if mids[i] % groups or width % groups:
                raise ValueError(f'RepAdapter: groups={groups} must divide mid_dims={mids[i]} and the width '
                                 f'{width} of block {i}')
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.blocks = self.for_parts(self.subs, lambda i, sub: DenseSparse(
            self.specs[i].op_dims(NORM_OF[sub])[1], mids[i], groups))
        self.reset_parameters()

    def norm_ops(self, index: int) -> Tuple[str, ...]:
        return tuple(NORM_OF[sub] for sub in self.subs)

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            for adapter in block.values():
                adapter.reset_parameters()

    def on_norm(self, i: int, op: str, y: Tensor) -> Tensor:
        """y (..., C) -> y + s (B dropout(A y + a) + b), (..., C)."""
        adapter = self.blocks[str(i)][SUB_OF[op]]
        down, bias, up, up_bias = (
            self.half(p) for p in (adapter.down.weight, adapter.down.bias, adapter.up, adapter.up_bias))
        y = recomputed(Tensor.to, y, down.dtype)  # once, not once per reader
        code = self.drop(recomputed(F.linear, y, down, bias, level=SMALL_PRODUCT))
        return add_product(y, code, adapter.dense(up), self.scales[i], up_bias)

    def fold_norm(self, i: int, op: str, weight: Tensor,
                  bias: Optional[Tensor]) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
        """weight (Cout, C), bias (Cout) -> same shapes."""
        # Zeros that pad a window never passed the norm; a bias merged into q, k and v would reach them.
        if op in 'qkv' and keeps(self.specs[i]):
            return None
        adapter = self.blocks[str(i)][SUB_OF[op]]
        up = self.scales[i] * adapter.dense(adapter.up)
        # What the adapter adds to every token regardless of its input.
        shift = up @ adapter.down.bias + self.scales[i] * adapter.up_bias
        return merge_before(weight, bias, *(t.to(weight) for t in (up, adapter.down.weight, shift)))
