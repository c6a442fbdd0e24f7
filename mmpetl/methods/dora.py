# SPDX-License-Identifier: Apache-2.0
"""DoRA: low-rank updates of the direction of a weight, and a magnitude of its own for each output channel.

Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", https://arxiv.org/abs/2402.09353, equations 5 and 11::

    y = m / ||W + s U D|| * (W + s U D) x + b      norms over the inputs of each output channel, a constant in the
                                                   backward pass; s = alpha / rank

``D`` (rank, Cin) is Kaiming-uniform, ``U`` (Cout, rank) zero, and ``m`` (Cout) starts at ||W||, so the start is exact.
"""

import math
from functools import partial
from typing import Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import LARGE_PRODUCT, SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import (
    BlockSpec,
    Layers,
    Method,
    PerLayer,
    add_product,
    check_ops,
    positive,
    scale_about,
)


class Decomposed(nn.Module):
    """``down`` (rank, Cin), ``up`` (Cout, rank) and ``magnitude`` (Cout) of one op."""

    def __init__(self, in_dims: int, out_dims: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, in_dims))
        self.up = nn.Parameter(torch.empty(out_dims, rank))
        self.magnitude = nn.Parameter(torch.empty(out_dims))

    def reset_parameters(self) -> None:
        """The published start; the magnitude waits for the base's weight."""
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        nn.init.zeros_(self.up)
        # A placeholder, so that a method without a base is finite; on_loaded writes the norms of the
        # weight.
        nn.init.ones_(self.magnitude)

    def gain(self, weight: Tensor, scale: float) -> Tensor:
        """m / ||W + s U D|| of the base's weight W (Cout, Cin), (Cout)."""
        kind = weight.device.type if weight.device.type in ('cpu', 'cuda') else 'cpu'  # the meta device has no autocast
        with torch.no_grad(), torch.autocast(kind, enabled=False):
            # W + s U D in one kernel, in full precision, and without gradients: the paper (section 4.3) takes the norm
            # for a constant, which saves the memory of a whole weight per op.
            if weight.dtype is self.up.dtype:
                norm = torch.addmm(weight, self.up, self.down, alpha=scale).norm(dim=1)
            else:  # a stored base: its weight is widened by the kernel of the sum
                norm = torch.add(weight, self.up @ self.down, alpha=scale).norm(dim=1)
        return self.magnitude / norm.to(self.magnitude.dtype)


@METHODS.register_module()
class DoRA(Method):
    """Weight-decomposed low-rank adaptation of any of q, k, v, proj, fc1, fc2, gate.

    Args:
        specs: Blocks of the backbone.
        rank: Rank of the update; per layer where wanted.
        ops: Adapted ops, a list or letters such as ``'qv'``.
        alpha: Numerator of the scale ``alpha / rank``; None means scale 1. Per layer where wanted.
        drop_rate: Dropout on the input of the low-rank branch.
        layers: Adapted blocks.

    Raises:
        ValueError: If ``rank`` < 1, an op is unknown, or a block lies outside the backbone.
    """

    tokenwise = True
    # The magnitude is that of the base's weight: what another method added before would be scaled along.
    first_on_op = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 rank: PerLayer = 8,
                 ops: Union[str, Sequence[str]] = 'qv',
                 alpha: PerLayer = None,
                 drop_rate: float = 0.,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        self.ops = check_ops(ops, 'DoRA: ops')
        ranks, alphas = self.spread(rank, 'rank', positive), self.spread(alpha, 'alpha')
        self.scales = {i: 1. if alphas[i] is None else alphas[i] / ranks[i] for i in self.layers}
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.blocks = self.for_parts(self.ops, lambda i, op: Decomposed(*self.specs[i].op_dims(op), ranks[i]))
        self.reset_parameters()

    def linear_ops(self, index: int) -> Tuple[str, ...]:
        return self.ops

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            for factors in block.values():
                factors.reset_parameters()

    def on_loaded(self) -> None:
        """Magnitudes of ops whose direction has not been trained become the norms of the base's weight."""
        with torch.no_grad():
            for i in self.layers:
                for op, factors in self.blocks[str(i)].items():
                    # A trained adapter has left zero. Its magnitudes are not touched, whatever is loaded into the base
                    # afterwards.
                    if not factors.up.any():
                        factors.magnitude.copy_(self.frozen(i, op)[0].to(factors.magnitude.dtype).norm(dim=1))

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """x (..., Cin), y = W x + b (..., Cout) -> m / ||W + s U D|| * (W + s U D) x + b, (..., Cout)."""
        factors, scale = self.blocks[str(i)][op], self.scales[i]
        # Asked for in every pass and not kept: the base's weight may be replaced or moved to another
        # device.
        gain, bias = factors.gain(self.frozen(i, op, 'stored')[0], scale), self.frozen(i, op, 'read')[1]
        code = recomputed(F.linear, self.drop(x), self.half(factors.down), level=SMALL_PRODUCT)
        # Read by the scale's gradient; kept where the base's product is kept, which it replaces.
        whole = recomputed(partial(add_product, scale=scale), y, code, self.half(factors.up), level=LARGE_PRODUCT)
        return scale_about(whole, gain, bias)

    def fold(self, i: int, op: str, weight: Tensor,
             bias: Optional[Tensor]) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
        """weight (Cout, Cin), bias (Cout) -> rows of W + s U D scaled to length m, (Cout, Cin), and the same bias."""
        if i not in self.layers or op not in self.ops:
            return weight, bias
        factors, scale = self.blocks[str(i)][op], self.scales[i]
        changed = weight + (scale * factors.up @ factors.down).to(weight)
        # Rows and not the bias: the magnitude belongs to W alone, as in the forward pass.
        return factors.gain(weight, scale)[:, None].to(weight) * changed, bias
