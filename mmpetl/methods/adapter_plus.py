# SPDX-License-Identifier: Apache-2.0
"""Adapter+: a bottleneck behind the block, with a learned factor per channel.

Steitz and Roth, "Adapters Strike Back", https://arxiv.org/abs/2406.06820, the Post-Adapter with channel-wise scaling::

    x <- x + s * drop_path(W_up gelu(W_down x + b_down) + b_up)      x: the stream after the feed-forward sublayer

``W_down`` and ``W_up`` are drawn from N(0, 0.01^2), cut off at two standard deviations, biases are zero, ``s`` (C) is
one: the start is near the frozen network, not exact.
"""

from typing import Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import AS_THEY_ARE, BlockSpec, HalfCopies, Layers, Method, PerLayer, autocast_dtype, positive, sum_as


class ChannelScaledBottleneck(nn.Module):
    """s * up(gelu(down(x))); (..., C) -> (..., C)."""

    def __init__(self, dim: int, mid_dims: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, mid_dims)
        self.up = nn.Linear(mid_dims, dim)
        self.scale = nn.Parameter(torch.empty(dim))

    def reset_parameters(self) -> None:
        """The published start."""
        for layer in (self.down, self.up):
            # torch cuts at absolute values: 0.02 is two standard deviations here.
            nn.init.trunc_normal_(layer.weight, std=0.01, a=-0.02, b=0.02)
            nn.init.zeros_(layer.bias)
        nn.init.ones_(self.scale)

    def forward(self, x: Tensor, half: HalfCopies = AS_THEY_ARE) -> Tensor:
        """x (..., C) -> (..., C); ``half`` gives the weights in the precision of the products."""
        code = recomputed(F.linear, x, half(self.down.weight), half(self.down.bias), level=SMALL_PRODUCT)
        scale = half(self.scale)
        # Scaling the small weights instead of the wide output, which need not be kept then.
        return F.linear(recomputed(F.gelu, code), scale[:, None] * half(self.up.weight), scale * half(self.up.bias))


@METHODS.register_module()
class AdapterPlus(Method):
    """Adapter+.

    Args:
        specs: Blocks of the backbone.
        mid_dims: Bottleneck width; per layer where wanted.
        drop_path_rate: Probability of dropping the branch for a sample, drawn apart from the sublayer's own; per layer
            where wanted. The published runs use 0.1 in all blocks.
        layers: Adapted blocks.

    Raises:
        ValueError: If ``mid_dims`` < 1 or a block lies outside the backbone.
    """

    # The branch has a drop-path of its own rate, so the block's must not act on it as well.
    inside_drop_path = False
    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 mid_dims: PerLayer = 8,
                 drop_path_rate: PerLayer = 0.,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        mids = self.spread(mid_dims, 'mid_dims', positive)
        self.drop_path_rates = {i: float(r) for i, r in self.spread(drop_path_rate, 'drop_path_rate').items()}
        self.blocks = self.for_blocks(lambda i: ChannelScaledBottleneck(self.specs[i].dim, mids[i]))
        self.reset_parameters()

    def branch_subs(self, index: int) -> Tuple[str, ...]:
        return ('ffn', )

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            block.reset_parameters()

    def on_branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """residual, y (B, ..., C) -> y + s * A(residual + y), (B, ..., C)."""
        # What the block would hand on is residual + y. The method sees it here, because there is no point
        # behind the sum.
        branch = self.blocks[str(i)](sum_as(residual, y, autocast_dtype(y)), self.half)
        if self.training and self.drop_path_rates[i] > 0:
            # 'row': one draw per sample, and survivors grow by 1 / (1 - rate), as timm's DropPath does.
            branch = stochastic_depth(branch, self.drop_path_rates[i], 'row')
        return y + branch
