# SPDX-License-Identifier: Apache-2.0
"""Convpass: convolutional bypasses beside both sublayers.

Jie and Deng, "Convolutional Bypasses Are Better Vision Transformer Adapters", https://arxiv.org/abs/2207.07039,
figure 2::

    y <- y + scale * drop_path(c(z))
    c(z) = W_up dropout(act(conv3x3(act(W_down z + b)))) + b_up,    act(t) = t sigmoid(1.702 t)

``z`` is the sublayer's normed input. The grid tokens are convolved as a map; every token in front of them (class token,
prompts) is convolved alone, as a map of one pixel, so that it meets only the centre of the kernel.
"""

from typing import Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import AS_THEY_ARE, SUBS, BlockSpec, HalfCopies, Layers, Method, PerLayer, check_ops, positive


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), (...) -> (...)."""
    return x * torch.sigmoid(1.702 * x)


class ConvBypass(nn.Module):
    """The branch c(z) of one sublayer."""

    def __init__(self, dim: int, mid_dims: int, drop_rate: float) -> None:
        super().__init__()
        self.down = nn.Linear(dim, mid_dims)
        self.conv = nn.Conv2d(mid_dims, mid_dims, 3, padding=1)
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.up = nn.Linear(mid_dims, dim)

    def reset_parameters(self, identity: bool) -> None:
        """Xavier-uniform ``down``, zero ``up`` (exact start); convolution Xavier-uniform, or the identity."""
        nn.init.xavier_uniform_(self.down.weight)
        nn.init.zeros_(self.up.weight)
        if identity:
            nn.init.zeros_(self.conv.weight)
            with torch.no_grad():
                # The centre tap of each channel's own kernel: every pixel is handed through.
                self.conv.weight[:, :, 1, 1].fill_diagonal_(1.)
        else:
            nn.init.xavier_uniform_(self.conv.weight)
        for layer in (self.down, self.conv, self.up):
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, grid: Tuple[int, ...], half: HalfCopies = AS_THEY_ARE) -> Tensor:
        """x (B, front + H * W, C) with the token grid (H, W) of this input -> (B, front + H * W, C)."""
        z = recomputed(quick_gelu, recomputed(
            F.linear, x, half(self.down.weight), half(self.down.bias), level=SMALL_PRODUCT))
        # From the input at hand and not from the specs: prompts may have come in, and pictures may have
        # another size than the backbone was built for.
        front = z.shape[1] - grid[0] * grid[1]
        weight, bias = half(self.conv.weight), half(self.conv.bias)
        mapped = F.conv2d(z[:, front:].transpose(1, 2).unflatten(2, grid), weight, bias, padding=1)
        mapped = mapped.flatten(2).transpose(1, 2)
        if front:
            # A map of one pixel meets the centre of a padded 3 x 3 kernel and zeros: a linear layer, without
            # the convolution.
            alone = F.linear(z[:, :front], weight[:, :, 1, 1], bias)
            mapped = torch.cat([alone, mapped], 1)
        return half.linear(self.up, self.drop(recomputed(quick_gelu, mapped)))


@METHODS.register_module()
class Convpass(Method):
    """Convolutional bypass.

    Args:
        specs: Blocks of the backbone; their token grid must be two-dimensional.
        mid_dims: Channels of the convolution; per layer where wanted.
        scale: Factor of the branch; per layer where wanted.
        init: Start of the convolution: 'identity' or 'xavier'; the up-projection is zero, so the start is exact either
            way.
        drop_rate: Dropout on the hidden units.
        drop_path_rate: Probability of dropping the branch for a sample, drawn apart from the sublayer's own; per layer
            where wanted.
        subs: Adapted sublayers; 'attn' alone is the published attention-only form.
        layers: Adapted blocks.

    Raises:
        ValueError: If the token grid is not (H, W), ``mid_dims`` < 1, or a sublayer or ``init`` is unknown.
    """

    # Dropped by a rate of its own, see drop_path_rate.
    inside_drop_path = False

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 mid_dims: PerLayer = 8,
                 scale: PerLayer = 1.0,
                 init: str = 'identity',
                 drop_rate: float = 0.1,
                 drop_path_rate: PerLayer = 0.,
                 subs: Union[str, Sequence[str]] = SUBS,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        if init not in ('identity', 'xavier'):
            raise ValueError(f"Convpass: init must be 'identity' or 'xavier', got {init!r}")
        self.subs, self.init = check_ops(subs, 'Convpass: subs', SUBS), init
        mids, self.scales = self.spread(mid_dims, 'mid_dims', positive), self.spread(scale, 'scale')
        self.drop_path_rates = {i: float(r) for i, r in self.spread(drop_path_rate, 'drop_path_rate').items()}
        for i in self.layers:
            # Refused when it is built: in the forward pass a video's grid (T, H, W) would be cut into nonsense.
            if len(self.specs[i].grid) != 2:
                raise ValueError(f'Convpass: needs a two-dimensional token grid, but block {i} of the backbone has '
                                 f'{self.specs[i].grid or "none"}')
            if 'attn' in self.subs:
                self.refuse_pooled_attention(i, 'the bypass of attention reads what attention reads')
        self.blocks = self.for_parts(self.subs, lambda i, sub: ConvBypass(self.specs[i].dim, mids[i], drop_rate))
        self.reset_parameters()

    def branch_subs(self, index: int) -> Tuple[str, ...]:
        return self.subs

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            for bypass in block.values():
                bypass.reset_parameters(self.init == 'identity')

    def on_branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """x, y (B, N, C) -> y + scale * drop_path(c(x)), (B, N, C)."""
        branch = self.blocks[str(i)][sub](x, self.grid(i), self.half)
        if self.training and self.drop_path_rates[i] > 0:
            branch = stochastic_depth(branch, self.drop_path_rates[i], 'row')
        # alpha inside the sum: scaling the branch first would be one more tensor of the stream's size.
        return torch.add(y, branch, alpha=self.scales[i])
