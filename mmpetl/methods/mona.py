# SPDX-License-Identifier: Apache-2.0
"""Mona: bottlenecks with depth-wise convolutions of three sizes, behind both sublayers.

Yin et al., "5%>100%: Breaking Performance Shackles of Full Fine-Tuning on Visual Recognition Tasks",
https://arxiv.org/abs/2408.08345, section 3::

    n = s_1 * LN(x) + s_2 * x                               x: the stream behind the sublayer
    z = W_down n + b_down
    z <- z + (conv3(z) + conv5(z) + conv7(z)) / 3           depth-wise, over the token grid
    z <- z + W_point z + b_point
    x <- x + W_up dropout(gelu(z)) + b_up

``s_1`` (C) starts at 1e-6 and ``s_2`` (C) at one. Linears are drawn from N(0, 0.02^2) cut off at +-2 with zero biases,
convolutions as torch's default: the start is near the frozen network, not exact. The paper adapts Swin, where all
tokens lie on the grid; tokens in front of it (class token, prompts) are convolved alone, as a map of one pixel each.
"""

from typing import Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import (
    AS_THEY_ARE,
    SUBS,
    BlockSpec,
    HalfCopies,
    Layers,
    Method,
    PerLayer,
    autocast_dtype,
    check_ops,
    layer_norm,
    positive,
    sum_as,
)

SIZES = (3, 5, 7)


class MultiConv(nn.Module):
    """The branch of one sublayer."""

    def __init__(self, dim: int, mid_dims: int, drop_rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.scale_norm, self.scale_stream = (nn.Parameter(torch.empty(dim)) for _ in range(2))
        self.down = nn.Linear(dim, mid_dims)
        self.convs = nn.ModuleList(nn.Conv2d(mid_dims, mid_dims, k, padding=k // 2, groups=mid_dims) for k in SIZES)
        self.point = nn.Linear(mid_dims, mid_dims)
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.up = nn.Linear(mid_dims, dim)

    def reset_parameters(self) -> None:
        """The published start. The point-wise convolution is one of the convolutions."""
        self.norm.reset_parameters()
        nn.init.constant_(self.scale_norm, 1e-6)
        nn.init.ones_(self.scale_stream)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        for layer in (*self.convs, self.point):
            layer.reset_parameters()

    def kernel(self, half: HalfCopies) -> Tuple[Tensor, Tensor]:
        """Weight (M, 1, 7, 7) and bias (M) of the mean of the three convolutions as one, M hidden channels."""
        small, middle, large = (half(conv.weight) for conv in self.convs)
        # Convolutions are linear in their kernels: the mean of three is one, with the smaller kernels
        # padded to 7 x 7.
        weight = large + F.pad(middle + F.pad(small, (1, 1, 1, 1)), (1, 1, 1, 1))
        bias = half(self.convs[0].bias) + half(self.convs[1].bias) + half(self.convs[2].bias)
        return weight / 3, bias / 3

    def forward(self, x: Tensor, grid: Tuple[int, ...], half: HalfCopies) -> Tensor:
        """x (B, front + H * W, C), or (B, H, W, C), with the token grid (H, W) of this input -> same shape."""
        # s_1 times an affine norm is the norm with other weights: no pass over the tokens for the factor.
        own = half if autocast_dtype(x) is x.dtype else AS_THEY_ARE
        gain, shift = (own(self.scale_norm) * own(p) for p in (self.norm.weight, self.norm.bias))
        normed = recomputed(layer_norm, x, gain, shift, self.norm.eps)
        mixed = recomputed(torch.addcmul, normed, x, half(self.scale_stream))
        z = recomputed(F.linear, mixed, half(self.down.weight), half(self.down.bias), level=SMALL_PRODUCT)
        weight, bias = self.kernel(half)
        # The stream is a sequence or, in some blocks, a grid; from here on it is a sequence.
        tokens = z.flatten(1, -2)
        front = tokens.shape[1] - grid[0] * grid[1]
        plane = tokens[:, front:].transpose(1, 2).unflatten(2, grid)
        added = F.conv2d(plane, weight, bias, padding=3, groups=len(weight)).flatten(2).transpose(1, 2)
        if front:
            # The centre of the 7 x 7 kernel: all that a map of one pixel meets.
            alone = torch.addcmul(bias, tokens[:, :front], weight[:, 0, 3, 3])
            added = torch.cat([alone, added], 1)
        tokens = tokens + added
        tokens = tokens + F.linear(tokens, half(self.point.weight), half(self.point.bias))
        hidden = self.drop(recomputed(F.gelu, tokens))
        return F.linear(hidden, half(self.up.weight), half(self.up.bias)).view(x.shape)


@METHODS.register_module()
class Mona(Method):
    """Multi-cognitive visual adapter.

    Args:
        specs: Blocks of the backbone; their token grid must be two-dimensional.
        mid_dims: Hidden width; per layer where wanted.
        drop_rate: Dropout on the hidden units.
        subs: Adapted sublayers.
        layers: Adapted blocks.

    Raises:
        ValueError: If the token grid is not (H, W), ``mid_dims`` < 1, or a sublayer is unknown.
    """

    # It stands behind the block's residual sum and has no drop-path of its own.
    inside_drop_path = False

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 mid_dims: PerLayer = 64,
                 drop_rate: float = 0.1,
                 subs: Union[str, Sequence[str]] = SUBS,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        self.subs = check_ops(subs, 'Mona: subs', SUBS)
        mids = self.spread(mid_dims, 'mid_dims', positive)
        for i in self.layers:
            if len(self.specs[i].grid) != 2:
                raise ValueError(f'Mona: needs a two-dimensional token grid, but block {i} of the backbone has '
                                 f'{self.specs[i].grid or "none"}')
        self.blocks = self.for_parts(self.subs, lambda i, sub: MultiConv(self.specs[i].dim, mids[i], drop_rate))
        self.reset_parameters()

    def branch_subs(self, index: int) -> Tuple[str, ...]:
        return self.subs

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            for branch in block.values():
                branch.reset_parameters()

    def on_branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """residual, y (..., C) -> y and the branch of their sum, (..., C)."""
        x = sum_as(residual, y, autocast_dtype(y))
        return y + self.blocks[str(i)][sub](x, self.grid(i), self.half)
