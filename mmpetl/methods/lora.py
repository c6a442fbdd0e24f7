# SPDX-License-Identifier: Apache-2.0
"""LoRA: low-rank additive updates of frozen linear ops.

Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", https://arxiv.org/abs/2106.09685, equation 3::

    y = W x + b + s * U D dropout(x),    s = alpha / rank,    D (rank, Cin) Kaiming-uniform, U (Cout, rank) zero

Kalajdzievski, "A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA", https://arxiv.org/abs/2312.03732:
s = alpha / sqrt(rank). Meng et al., "PiSSA: Principal Singular Values and Singular Vectors Adaptation",
https://arxiv.org/abs/2404.02948: U and D start at the first ``rank`` singular vectors of W, times the roots of their
values, and their product is taken off W. Here W stays as it is and the start is subtracted, which is the same sum::

    y = W x + b + s * (U D - U_0 D_0) dropout(x)
"""

import math
from typing import Any, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import (
    AS_THEY_ARE,
    BlockSpec,
    HalfCopies,
    Layers,
    Method,
    PerLayer,
    Update,
    add_product,
    check_ops,
    positive,
)


class LowRank(nn.Module):
    """The two factors of one update: ``down`` (rank, Cin) and ``up`` (Cout, rank); with ``anchored`` also their start,
    which is subtracted, ``start_down`` and ``start_up``."""

    def __init__(self, in_dims: int, out_dims: int, rank: int, anchored: bool = False) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, in_dims))
        self.up = nn.Parameter(torch.empty(out_dims, rank))
        self.anchored = anchored
        if anchored:
            # Buffers and not constants: an adapter file must hold them, as singular vectors cannot be had again
            # bit by bit.
            self.register_buffer('start_down', torch.empty(rank, in_dims))
            self.register_buffer('start_up', torch.empty(out_dims, rank))

    def joined(self, half: HalfCopies = AS_THEY_ARE) -> Tuple[Tensor, Tensor]:
        """Factors whose product is the whole update: (rank, Cin) and (Cout, rank), or twice the rank."""
        if not self.anchored:
            return half(self.down), half(self.up)
        # One product of twice the rank instead of two products: the minus sign goes into the small factor.
        down = half.stack(self.down, self.start_down, frozen=True).flatten(0, 1)
        return down, torch.cat([half(self.up), -half(self.start_up, frozen=True)], 1)

    def start_from(self, weight: Tensor, scale: float) -> None:
        """PiSSA's start from the base's weight (Cout, Cin), unless the factors have left their start."""
        # on_loaded may come again at any time; factors that were trained are left alone.
        if not (torch.equal(self.down, self.start_down) and torch.equal(self.up, self.start_up)):
            return
        rank = len(self.down)
        # In double precision: the factors are rounded to float32 once, at the end.
        u, values, v = torch.linalg.svd(weight.double(), full_matrices=False)
        # Half of each singular value on either side, less the scale that the forward pass multiplies in.
        roots = (values[:rank] / scale).sqrt()
        self.down.copy_(roots[:, None] * v[:rank])
        self.up.copy_(u[:, :rank] * roots)
        self.keep_start()

    def keep_start(self) -> None:
        """The factors as they are become the start that is subtracted."""
        self.start_down.copy_(self.down)
        self.start_up.copy_(self.up)


@METHODS.register_module()
class LoRA(Update):
    """Low-rank adaptation of any of q, k, v, proj, fc1, fc2, gate.

    Args:
        specs: Blocks of the backbone.
        rank: Rank of the update; per layer where wanted.
        ops: Adapted ops, a list or letters such as ``'qv'``.
        alpha: Numerator of the scale ``alpha / rank``; None means ``alpha = rank`` (scale 1). Per layer where wanted.
        drop_rate: Dropout on the input of the branch.
        init: 'kaiming' (the paper's) or 'normal' (N(0, 0.02)) for ``down`` with a zero ``up``, or 'pissa' (singular
            vectors of the base's weight); the start is exact with all of them.
        rank_stabilized: The scale is ``alpha / sqrt(rank)`` (rsLoRA).
        layers: Adapted blocks.

    Raises:
        ValueError: If ``rank`` < 1, larger than a weight with 'pissa', an op or ``init`` is unknown,
            ``rank_stabilized`` comes without ``alpha``, or a block lies outside the backbone.
    """

    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 rank: PerLayer = 8,
                 ops: Union[str, Sequence[str]] = 'qv',
                 alpha: PerLayer = None,
                 drop_rate: float = 0.,
                 init: str = 'kaiming',
                 rank_stabilized: bool = False,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        if init not in ('kaiming', 'normal', 'pissa'):
            raise ValueError(f"LoRA: init must be 'kaiming', 'normal' or 'pissa', got {init!r}")
        self.ops = check_ops(ops, 'LoRA: ops')
        self.init = init
        ranks, alphas = self.spread(rank, 'rank', positive), self.spread(alpha, 'alpha')
        if rank_stabilized and None in alphas.values():
            raise ValueError('LoRA: rank_stabilized=True divides alpha by sqrt(rank): give alpha too')
        # One number per block: rank and alpha may differ between blocks.
        self.scales = {
            i: 1. if alphas[i] is None else alphas[i] / (math.sqrt(ranks[i]) if rank_stabilized else ranks[i])
            for i in self.layers
        }
        for i in self.layers:
            # A weight has no more singular vectors than its smaller side.
            small = min(size for op in self.ops for size in self.specs[i].op_dims(op))
            if init == 'pissa' and (ranks[i] > small or not self.scales[i] > 0):
                raise ValueError(f"LoRA: init='pissa' needs alpha > 0 and rank <= {small}, the smallest width of block "
                                 f'{i}; got rank={ranks[i]}, alpha={alphas[i]}')
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.blocks = self.for_parts(
            self.ops, lambda i, op: LowRank(*self.specs[i].op_dims(op), ranks[i], init == 'pissa'))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            for factors in block.values():
                if self.init == 'normal':
                    nn.init.normal_(factors.down, std=0.02)
                else:
                    nn.init.kaiming_uniform_(factors.down, a=math.sqrt(5))
                nn.init.zeros_(factors.up)
                if factors.anchored:
                    with torch.no_grad():
                        # Without a base there are no singular vectors; any start that is subtracted from itself is
                        # exact.
                        factors.keep_start()

    @torch.no_grad()
    def on_loaded(self) -> None:
        """PiSSA starts from the base's weights."""
        if self.init == 'pissa':
            for i in self.layers:
                for op, factors in self.blocks[str(i)].items():
                    factors.start_from(self.frozen(i, op)[0], self.scales[i])

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """x (..., Cin), y (..., Cout) -> y + s * U D dropout(x), (..., Cout)."""
        # Under autocast all factors of the method are cast by one kernel; otherwise half() hands them
        # through.
        return self.on_part(self.part(i, op), x, y)

    def part(self, i: int, op: str) -> Any:
        return self.blocks[str(i)][op], self.scales[i]

    def on_part(self, part: Any, x: Tensor, y: Tensor) -> Tensor:
        """As :meth:`on_linear` with the factors and scale of one place: x (..., Cin), y (..., Cout) -> (..., Cout)."""
        factors, scale = part
        down, up = factors.joined(self.half)
        code = recomputed(F.linear, self.drop(x), down, level=SMALL_PRODUCT)
        # Scale and sum inside the product: no tensor of y's size for the update.
        return add_product(y, code, up, scale)

    def joins(self, part: Any) -> bool:
        return True

    @classmethod
    def on_parts(cls, parts: Sequence[Tuple[Method, Any]], owner: Optional[Tensor], x: Tensor, y: Tensor) -> Tensor:
        """x (B, N, Cin), y (B, N, Cout) -> y + s U D x with the factors of each sample's method, (B, N, Cout).

        Smaller ranks are filled up with zeros, which add nothing.
        """
        factors = [(*low_rank.joined(), scale) for _, (low_rank, scale) in parts]
        ranks = [len(down) for down, _, _ in factors]
        rank, equal = max(ranks), len(set(ranks)) == 1
        downs = torch.stack([d if equal else F.pad(d, (0, 0, 0, rank - len(d))) for d, _, _ in factors])
        ups = torch.stack([u if equal else F.pad(u, (0, rank - u.shape[1])) for _, u, _ in factors])
        scales = [scale for *_, scale in factors]
        if any(scale != 1 for scale in scales):
            ups = ups * ups.new_tensor(scales)[:, None, None]
        if owner is not None:
            downs, ups = downs[owner], ups[owner]
        code = torch.bmm(x, downs.transpose(1, 2))
        if code.dtype == y.dtype == ups.dtype:
            return torch.baddbmm(y, code, ups.transpose(1, 2))
        return y + torch.bmm(code, ups.transpose(1, 2))

    def delta(self, i: int, op: str) -> Tensor:
        """The update of the weight, s U D or s (U D - U_0 D_0), of shape (Cout, Cin)."""
        down, up = self.blocks[str(i)][op].joined()
        return self.scales[i] * up @ down
