# SPDX-License-Identifier: Apache-2.0
"""LoKr: updates that are the Kronecker product of a small and a low-rank matrix.

Yeh et al., "Navigating Text-To-Image Customization: From LyCORIS Fine-Tuning to Model Evaluation",
https://arxiv.org/abs/2309.14859; Edalati et al., "KronA", https://arxiv.org/abs/2212.10650::

    y = W x + b + s (A (x) B) dropout(x)        B = U D of rank ``rank``, or B itself; s = alpha / rank

Cout = l k and Cin = m n are split near their roots; ``A`` (l, m), ``B`` (k, n). ``B`` is one matrix where ``rank`` is
at least half of its larger side (then s = 1), and with ``decompose_both`` ``A`` has two factors by the same rule.
``A`` and ``D`` are Kaiming-uniform, ``U`` (or the whole ``B``) is zero: the start is exact.
"""

import math
from typing import Callable, Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import BlockSpec, Layers, PerLayer, Update, add_product, check_ops, positive


def split(size: int, factor: int = -1) -> Tuple[int, int]:
    """``size`` as a product: ``factor`` first where it divides, else the largest divisor up to it and to the root."""
    if factor > 0 and size % factor == 0:
        return factor, size // factor
    # The divisor nearest to the root makes the two sides about equally large.
    first = max(d for d in range(1, math.isqrt(size) + 1) if size % d == 0 and (factor < 0 or d <= factor))
    return first, size // first


def kronecker(a: Tensor, b: Tensor) -> Tensor:
    """a (L, M) and b (K, N) -> (L K, M N)."""
    return (a[:, None, :, None] * b[None, :, None, :]).flatten(2).flatten(0, 1)


def _mix(a: Tensor, code: Tensor) -> Tensor:
    """a (L, M) times every code (..., M, R) -> (..., L, R)."""
    rows = code.flatten(0, -3)
    return torch.bmm(a.expand(len(rows), -1, -1), rows).unflatten(0, code.shape[:-2])


class Side(nn.Module):
    """One side of the product: ``whole`` (rows, columns), or ``up`` (rows, rank) and ``down`` (rank, columns)."""

    def __init__(self, rows: int, columns: int, rank: Optional[int]) -> None:
        super().__init__()
        self.is_whole = rank is None
        if rank is None:
            self.whole = nn.Parameter(torch.empty(rows, columns))
        else:
            self.up = nn.Parameter(torch.empty(rows, rank))
            self.down = nn.Parameter(torch.empty(rank, columns))

    def reset_parameters(self, zero: bool) -> None:
        """Kaiming-uniform, or a product of zero."""
        for parameter in self.parameters():
            # All are drawn, also what becomes zero: a seed then gives the other parameters the same values.
            nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))
        if zero:
            nn.init.zeros_(self.whole if self.is_whole else self.up)

    def matrix(self, half: Optional[Callable[[Tensor], Tensor]] = None) -> Tensor:
        """(rows, columns); ``half`` casts parameters."""
        cast = half or (lambda t: t)
        return cast(self.whole) if self.is_whole else cast(self.up) @ cast(self.down)


@METHODS.register_module()
class LoKr(Update):
    """Low-rank Kronecker product adaptation of any of q, k, v, proj, fc1, fc2, gate.

    Args:
        specs: Blocks of the backbone.
        rank: Rank of ``B``; per layer where wanted.
        ops: Adapted ops, a list or letters such as ``'qv'``.
        alpha: Numerator of the scale ``alpha / rank``; None means scale 1. Per layer where wanted.
        factor: Columns m of ``A``, and rows l where ``out_factor`` is not given; -1: near the root of the width.
        out_factor: Rows l of ``A``; None takes ``factor``.
        decompose_both: ``A`` has two factors too where that is smaller.
        drop_rate: Dropout on the input of the branch.
        layers: Adapted blocks.

    Raises:
        ValueError: If ``rank`` < 1, a factor is neither -1 nor >= 1, an op is unknown, or a block lies outside the
            backbone.
    """

    tokenwise = True
    #: How widths are divided; for files that name one factor for all of them.
    split = staticmethod(split)

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 rank: PerLayer = 8,
                 ops: Union[str, Sequence[str]] = 'qv',
                 alpha: PerLayer = None,
                 factor: PerLayer = -1,
                 out_factor: PerLayer = None,
                 decompose_both: bool = False,
                 drop_rate: float = 0.,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        self.ops = check_ops(ops, 'LoKr: ops')
        self.ranks, alphas = self.spread(rank, 'rank', positive), self.spread(alpha, 'alpha')
        self.factors = {i: (f, f if o is None else o) for (i, f), o in zip(
            self.spread(factor, 'factor').items(), self.spread(out_factor, 'out_factor').values())}
        for i, pair in self.factors.items():
            if not all(isinstance(f, int) and (f == -1 or f > 0) for f in pair):
                raise ValueError('LoKr: factor and out_factor must be -1 or whole numbers >= 1, got '
                                 f'{pair} in block {i}')
        self.decompose_both = decompose_both
        self.scales = {i: 1. if alphas[i] is None else alphas[i] / self.ranks[i] for i in self.layers}
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.blocks = self.for_parts(self.ops, self._build)
        self.reset_parameters()

    def _build(self, i: int, op: str) -> nn.Module:
        (in_dims, out_dims), rank = self.specs[i].op_dims(op), self.ranks[i]
        shapes = list(zip(split(out_dims, self.factors[i][1]), split(in_dims, self.factors[i][0])))
        # LyCORIS's rule: two factors where the rank is below half of the larger side.
        low = [rank if 2 * rank < max(shape) else None for shape in shapes]
        return nn.ModuleDict(dict(
            a=Side(*shapes[0], low[0] if self.decompose_both else None), b=Side(*shapes[1], low[1])))

    def scale_of(self, i: int, op: str) -> float:
        """alpha / rank, or 1 where neither side has a rank."""
        sides = self.blocks[str(i)][op].values()
        # alpha / rank means nothing where no rank is left; LyCORIS sets alpha to rank then.
        return 1. if all(side.is_whole for side in sides) else self.scales[i]

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            for sides in block.values():
                sides['a'].reset_parameters(zero=False)
                sides['b'].reset_parameters(zero=True)

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """x (..., Cin), y (..., Cout) -> y + s (A (x) B) dropout(x), (..., Cout), one side after the other: the product
        itself, as large as the weight, is never formed."""
        sides = self.blocks[str(i)][op]
        a, b = sides['a'].matrix(self.half), sides['b']
        # (A (x) B) x = A X B^T, with x as the rows of X (m, n); D first and U last, so that all between is narrow.
        code = self.drop(x).unflatten(-1, (a.shape[1], -1))
        if not b.is_whole:
            code = recomputed(F.linear, code, self.half(b.down), level=SMALL_PRODUCT)
        code = recomputed(_mix, a, code, level=SMALL_PRODUCT)
        return add_product(y.unflatten(-1, (len(a), -1)), code, self.half(b.whole if b.is_whole else b.up),
                           self.scale_of(i, op)).flatten(-2)

    def delta(self, i: int, op: str) -> Tensor:
        """The update of the weight, of shape (Cout, Cin)."""
        sides = self.blocks[str(i)][op]
        return self.scale_of(i, op) * kronecker(sides['a'].matrix(), sides['b'].matrix())
