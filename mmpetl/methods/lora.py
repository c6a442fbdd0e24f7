"""LoRA: low-rank additive updates of frozen linear ops.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685, equation 3::

    y = W x + b + (alpha / rank) * U D dropout(x),    D (rank, Cin) Kaiming-uniform, U (Cout, rank) zero
"""

import math
from typing import Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import BlockSpec, Layers, Method, PerLayer, add_product, check_ops, per_layer, positive


class LowRank(nn.Module):
    """The two factors of one update: ``down`` (rank, Cin) and ``up`` (Cout, rank)."""

    def __init__(self, in_dims: int, out_dims: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, in_dims))
        self.up = nn.Parameter(torch.empty(out_dims, rank))


@METHODS.register_module()
class LoRA(Method):
    """Low-rank adaptation of any of q, k, v, proj, fc1, fc2.

    Args:
        specs: Blocks of the backbone.
        rank: Rank of the update; per layer where wanted.
        ops: Adapted ops, a list or letters such as ``'qv'``.
        alpha: Numerator of the scale ``alpha / rank``; None means ``alpha = rank`` (scale 1). Per layer where wanted.
        drop_rate: Dropout on the input of the branch.
        init: 'kaiming' (the paper's) or 'normal' (N(0, 0.02)) for ``down``; ``up`` is always zero, so the start is
            exact.
        layers: Adapted blocks.

    Raises:
        ValueError: If ``rank`` < 1, an op or ``init`` is unknown, or a block lies outside the backbone.
    """

    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 rank: PerLayer = 8,
                 ops: Union[str, Sequence[str]] = 'qv',
                 alpha: PerLayer = None,
                 drop_rate: float = 0.,
                 init: str = 'kaiming',
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        if init not in ('kaiming', 'normal'):
            raise ValueError(f"LoRA: init must be 'kaiming' or 'normal', got {init!r}")
        self.ops = check_ops(ops, 'LoRA: ops')
        self.init = init
        ranks = {
            i: positive(r, 'rank', 'LoRA')
            for i, r in per_layer(rank, self.layers, len(self.specs), 'LoRA: rank').items()
        }
        alphas = per_layer(alpha, self.layers, len(self.specs), 'LoRA: alpha')
        self.scales = {i: 1. if alphas[i] is None else alphas[i] / ranks[i] for i in self.layers}
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.blocks = nn.ModuleDict({
            str(i): nn.ModuleDict({op: LowRank(*self.specs[i].op_dims(op), ranks[i]) for op in self.ops})
            for i in self.layers
        })
        self.reset_parameters()

    def linear_ops(self, index: int) -> Tuple[str, ...]:
        return self.ops

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            for factors in block.values():
                if self.init == 'kaiming':
                    nn.init.kaiming_uniform_(factors.down, a=math.sqrt(5))
                else:
                    nn.init.normal_(factors.down, std=0.02)
                nn.init.zeros_(factors.up)

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        factors = self.blocks[str(i)][op]
        code = recomputed(F.linear, self.drop(x), self.half(factors.down), level=SMALL_PRODUCT)
        return add_product(y, code, self.half(factors.up), self.scales[i])

    def delta(self, i: int, op: str) -> Tensor:
        """The update of the weight, (alpha / rank) U D, of shape (Cout, Cin)."""
        factors = self.blocks[str(i)][op]
        return self.scales[i] * factors.up @ factors.down

    def fold(self, i: int, op: str, weight: Tensor,
             bias: Optional[Tensor]) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
        if i not in self.layers or op not in self.ops:
            return weight, bias
        return weight + self.delta(i, op).to(weight), bias
