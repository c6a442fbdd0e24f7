# SPDX-License-Identifier: Apache-2.0
"""KAdaptation: updates that are sums of Kronecker products, with rules shared by all blocks.

He et al., "Parameter-efficient Model Adaptation for Vision Transformers", https://arxiv.org/abs/2203.16329,
equations 4 to 7::

    y = W x + b + scale * H^T x + e,    H = sum_i A_i (x) B_i
    A_i = l_i r_i  (n x n),    B_i = u_i w_i  (Cin/n x Cout/n)

``A_i`` ("slow" rules) belong to an op and are shared by all blocks of one width, ``B_i`` ("fast" factors) belong to one
block. Because ``(l r) (x) (u w) = (l (x) u) (r (x) w)``, H is a product P Q of a (Cin, n) and a (n, Cout) matrix whose
columns and rows are Kronecker products of vectors (a Khatri-Rao product): no Kronecker product of matrices is ever
built.
"""

import math
from typing import Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import AS_THEY_ARE, BlockSpec, HalfCopies, Layers, PerLayer, Update, add_product, check_ops, positive


class Factors(nn.Module):
    """n pairs of low-rank factors: ``left`` (n, rows, rank) and ``right`` (n, rank, columns)."""

    def __init__(self, num: int, rows: int, rank: int, columns: int) -> None:
        super().__init__()
        self.left = nn.Parameter(torch.empty(num, rows, rank))
        self.right = nn.Parameter(torch.empty(num, rank, columns))


@METHODS.register_module()
class KAdaptation(Update):
    """Kronecker adaptation.

    Args:
        specs: Blocks of the backbone.
        phm_dim: Number n of summands and size of the rules; divides the input and output width of every adapted op.
        rank: Rank of the factors B_i; per layer where wanted.
        rule_rank: Rank of the rules A_i.
        ops: Adapted ops, a list or letters such as ``'qv'``.
        scale: Factor of the update; 160 is the published 128 / 4 * 5.
        bias: 'shared' (one bias per block, added to every adapted op, as published), 'separate' (one per op) or None.
        share_rule: One rule per op for all blocks of equal width; False gives every block its own.
        drop_rate: Dropout on the n * rank * rule_rank hidden units.
        tie_factors: All ops use the factors B_i of the first op, as the first version of the published code does. None:
            only with ``variant='released'``.
        post_scale_q: The query's update is added after the division by sqrt(head_dim), which multiplies it by
            sqrt(head_dim).
        variant: 'paper', or 'released' for the behaviour of the published code: ``tie_factors``, ``post_scale_q``, both
            factors zero (so that only the bias learns) and updates whose token, sample and head axes are mixed up. Only
            for comparisons.
        layers: Adapted blocks.

    Raises:
        ValueError: If a size is < 1, ``phm_dim`` does not divide a width, or an op or option is unknown.
    """

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 phm_dim: int = 32,
                 rank: PerLayer = 1,
                 rule_rank: int = 1,
                 ops: Union[str, Sequence[str]] = 'qv',
                 scale: float = 160.,
                 bias: Optional[str] = 'shared',
                 share_rule: bool = True,
                 drop_rate: float = 0.,
                 tie_factors: Optional[bool] = None,
                 post_scale_q: bool = False,
                 variant: str = 'paper',
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        if bias not in ('shared', 'separate', None):
            raise ValueError(f"KAdaptation: bias must be 'shared', 'separate' or None, got {bias!r}")
        if variant not in ('paper', 'released'):
            raise ValueError(f"KAdaptation: variant must be 'paper' or 'released', got {variant!r}")
        # The released code differs in four things at once; they are one option, as nobody needs them apart
        # but for tie_factors and post_scale_q.
        self.released = variant == 'released'
        self.tied = self.released if tie_factors is None else tie_factors
        self.post_scale_q = post_scale_q or self.released
        # The released form mixes tokens, so it cannot do with the class token alone.
        self.tokenwise = not self.released
        self.ops, self.scale, self.share_rule, self.bias = check_ops(ops, 'KAdaptation: ops'), scale, share_rule, bias
        self.phm_dim = positive(phm_dim, 'phm_dim', 'KAdaptation')
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self._check_widths()
        ranks = self.spread(rank, 'rank', positive)
        rule_rank = positive(rule_rank, 'rule_rank', 'KAdaptation')
        self.rules = nn.ModuleDict({
            name: nn.ModuleDict({op: Factors(phm_dim, phm_dim, rule_rank, phm_dim) for op in self.ops})
            # One entry per width where rules are shared, in the order of the blocks.
            for name in dict.fromkeys(self.rule_name(i) for i in self.layers)
        })
        self.blocks = nn.ModuleDict()
        self.biases = nn.ParameterDict()
        for i in self.layers:
            self.blocks[str(i)] = nn.ModuleDict()
            for op in self.ops:
                rows, columns = (width // phm_dim for width in self.specs[i].op_dims(op))
                # Tied ops have no factors of their own, and so no keys in the state dict.
                if not self.tied or op == self.ops[0]:
                    self.blocks[str(i)][op] = Factors(phm_dim, rows, ranks[i], columns)
                if bias:
                    # With a shared bias every op writes the same name; the last one stays, and all are equally long, as
                    # _check_widths has seen.
                    self.biases[self.bias_name(i, op)] = nn.Parameter(torch.empty(columns * phm_dim))
        self.reset_parameters()

    def _check_widths(self) -> None:
        """phm_dim divides all widths; what ops share has one width."""
        for i in self.layers:
            dims = {op: self.specs[i].op_dims(op) for op in self.ops}
            for op, widths in dims.items():
                for width in widths:
                    if width % self.phm_dim:
                        raise ValueError(
                            f'KAdaptation: phm_dim={self.phm_dim} does not divide the width {width} of op {op!r} in '
                            f'block {i}; choose a common divisor such as {math.gcd(width, self.phm_dim)}')
            if self.bias == 'shared' and len({out for _, out in dims.values()}) > 1:
                raise ValueError(
                    f"KAdaptation: ops {', '.join(self.ops)} have different output widths; use bias='separate'")
            if self.tied and len(set(dims.values())) > 1:
                raise ValueError(
                    f"KAdaptation: ops {', '.join(self.ops)} have different widths and cannot share factors")

    def rule_name(self, i: int) -> str:
        """Key of block ``i``'s rules: its width C where blocks share them, else its index."""
        return str(self.specs[i].dim if self.share_rule else i)

    def bias_name(self, i: int, op: str) -> str:
        """Key of the bias of one op in :attr:`biases`."""
        return str(i) if self.bias == 'shared' else f'{i}_{op}'

    def reset_parameters(self) -> None:
        """Rules U(-0.01, 0.01), ``left`` Xavier-uniform with gain sqrt(2), ``right`` and biases zero: the start is
        exact."""
        for rules in self.rules.values():
            for rule in rules.parameters():
                nn.init.uniform_(rule, -0.01, 0.01)
        for block in self.blocks.values():
            for factors in block.values():
                # A bound of zero draws zeros: with both factors zero no gradient reaches either, and only the bias
                # learns.
                bound = 0. if self.released else math.sqrt(12. / sum(factors.left.shape[1:]))
                nn.init.uniform_(factors.left, -bound, bound)
                nn.init.zeros_(factors.right)
        for bias in self.biases.values():
            nn.init.zeros_(bias)

    def factors(self, i: int, op: str, half: HalfCopies = AS_THEY_ARE) -> Tuple[Tensor, Tensor]:
        """P (Cin, m) and scale * Q (m, Cout) with H = P Q and m = n * rule_rank * rank."""
        rule = self.rules[self.rule_name(i)][op]
        own = self.blocks[str(i)][self.ops[0] if self.tied else op]
        # Axes: (rows of A, rows of B, n, rule rank, rank) and (n, rule rank, rank, columns of A, columns of B).
        # The Khatri-Rao product by broadcasting: n * rule_rank * rank columns, each a Kronecker product of
        # two vectors.
        rule_left, own_left = (half(factors.left).transpose(0, 1) for factors in (rule, own))
        left = rule_left[:, None, :, :, None] * own_left[None, :, :, None, :]
        right = half(rule.right)[:, :, None, :, None] * half(own.right)[:, None, :, None, :]
        # The scale goes into the smaller side.
        return left.flatten(2).flatten(0, 1), self.scale * right.flatten(0, 2).flatten(1)

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """x (..., Cin), y (..., Cout) -> y + scale * H^T x + e, (..., Cout)."""
        left, right = self.factors(i, op, self.half)
        bias = self.half(self.biases[self.bias_name(i, op)]) if self.bias else None
        code, scale = self.drop(recomputed(torch.matmul, x, left, level=SMALL_PRODUCT)), self._post_scale(i, op)
        if self.released:
            return torch.add(y, self._mix_axes(i, F.linear(code, right.t(), bias)), alpha=scale)
        # scale is 1 except for a post-scaled query, where it multiplies the bias as well: the released code
        # adds both after the division.
        return add_product(y, code, right.t(), scale, bias)

    def _post_scale(self, i: int, op: str) -> float:
        return math.sqrt(self.specs[i].head_dim) if self.post_scale_q and op == 'q' else 1.

    def _mix_axes(self, i: int, delta: Tensor) -> Tensor:
        """The published code reads the memory of a (N, B, C) update as (B * heads, N, head_dim); (B, N, C) -> (B, N,
        C)."""
        batch, tokens, dim = delta.shape
        # reshape copies the (N, B, C) memory and reads it as if the batch came first: that is the mistake,
        # kept for comparisons.
        mixed = delta.transpose(0, 1).reshape(batch, self.specs[i].heads, tokens, self.specs[i].head_dim)
        return mixed.transpose(1, 2).reshape(batch, tokens, dim)

    def delta(self, i: int, op: str) -> Tensor:
        """The update of the weight, scale * H^T, of shape (Cout, Cin)."""
        left, right = self.factors(i, op)
        return self._post_scale(i, op) * (left @ right).t()

    def fold(self, i: int, op: str, weight: Tensor,
             bias: Optional[Tensor]) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
        """weight (Cout, Cin), bias (Cout) or None -> W + scale * H^T, and bias + e; None for the released variant,
        which is no affine map of x."""
        if self.released:
            return None
        if i not in self.layers or op not in self.ops:
            return weight, bias
        if self.bias:
            # A base without a bias gets one from here, or merging refuses where there is no place for it.
            shift = (self._post_scale(i, op) * self.biases[self.bias_name(i, op)]).to(weight)
            bias = shift if bias is None else bias + shift
        return weight + self.delta(i, op).to(weight), bias
