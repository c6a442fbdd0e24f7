# SPDX-License-Identifier: Apache-2.0
"""Compacter: bottleneck adapters made of parametrised hypercomplex multiplication (PHM) layers.

Mahabadi et al., "Compacter: Efficient Low-Rank Hypercomplex Adapter Layers", https://arxiv.org/abs/2106.04647,
equations 3 and 5, in the form of the ELEVATER benchmark's code (after the feed-forward sublayer only, own LayerNorm on
the input)::

    y <- y + PHM_up(gelu(PHM_down(LN(y)))),    PHM(x) = H^T x + b,    H = sum_i A_i (x) (u_i w_i)

The rules A_i (n x n, full rank) are shared by all PHM layers; u_i (Cin/n x rank) and w_i (rank x Cout/n) belong to one
layer. The Kronecker product is never built: x is read as n rows of Cin/n, multiplied by all u_i, and the (n, n * rank)
code by A_i (x) w_i.
"""

import math
from functools import partial
from typing import Optional, Sequence, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import AS_THEY_ARE, SUBS, BlockSpec, HalfCopies, Layers, Method, PerLayer, check_ops, positive


def add_rule(module: nn.Module, phm_dim: int, kind: str) -> None:
    """Give ``module`` a ``rule`` (n, n, n): 'trained' (parameter), 'frozen' (buffer: random, hence saved too) or
    'none'."""
    rule = None if kind == 'none' else torch.empty(phm_dim, phm_dim, phm_dim)
    if kind == 'trained':
        module.register_parameter('rule', nn.Parameter(rule))
    else:
        # Also where it is None: the attribute exists either way, and a state dict holds no key for None.
        module.register_buffer('rule', rule)


class PHMLinear(nn.Module):
    """A PHM layer; ``left`` (n, Cin/n, rank), ``right`` (n, rank, Cout/n), ``bias`` (Cout), ``rule`` where it has its
    own."""

    rule: Optional[Tensor]

    def __init__(self, in_dims: int, out_dims: int, phm_dim: int, rank: int, rule: str) -> None:
        super().__init__()
        add_rule(self, phm_dim, rule)
        self.left = nn.Parameter(torch.empty(phm_dim, in_dims // phm_dim, rank))
        self.right = nn.Parameter(torch.empty(phm_dim, rank, out_dims // phm_dim))
        self.bias = nn.Parameter(torch.empty(out_dims))

    def reset_parameters(self, zero: bool) -> None:
        """Xavier-uniform factors with gain sqrt(2), zero bias; ``zero`` makes the layer's output zero."""
        for factor in (self.left, self.right):
            # Xavier's sqrt(6 / (fan_in + fan_out)) times sqrt(2), over the two axes of one summand: torch's
            # initialisers would count the leading axis too.
            bound = math.sqrt(12. / sum(factor.shape[1:]))
            nn.init.uniform_(factor, -bound, bound)
        if zero:
            nn.init.zeros_(self.right)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, rule: Optional[Tensor], half: HalfCopies = AS_THEY_ARE) -> Tensor:
        """x (..., Cin), shared rule (n, n, n) or None -> (..., Cout)."""
        rule = half(self.rule if rule is None else rule, frozen=True)
        num, rows, rank = self.left.shape
        # H^T x with x read as a matrix: sum_i A_i^T X B_i. All u_i are applied at once, side by side.
        code = x.unflatten(-1, (num, rows)) @ half(self.left).transpose(0, 1).reshape(rows, num * rank)
        # Axes: (rows of A, n, rank, columns of A, columns of w).
        right = rule.transpose(0, 1)[:, :, None, :, None] * half(self.right)[None, :, :, None, :]
        # A_i and w_i are small; their products, (n * n * rank, Cout), are what remains of the Kronecker
        # product.
        return F.linear(code.flatten(-2), right.flatten(0, 2).flatten(1).t(), half(self.bias))


class PHMBottleneck(nn.Module):
    """up(gelu(down(norm(x)))) with two PHM layers; (..., C) -> (..., C)."""

    def __init__(self, dim: int, mid_dims: int, phm_dim: int, rank: int, rule: str, pre_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim) if pre_norm else nn.Identity()
        self.down = PHMLinear(dim, mid_dims, phm_dim, rank, rule)
        self.up = PHMLinear(mid_dims, dim, phm_dim, rank, rule)

    def forward(self, x: Tensor, rule: Optional[Tensor], half: HalfCopies = AS_THEY_ARE) -> Tensor:
        """x (..., C), shared rule (n, n, n) or None -> (..., C)."""
        # The rule is handed in and not held by the layers: a shared parameter would stand in the state dict
        # once per layer.
        code = recomputed(self.down, recomputed(half.norm, self.norm, x), rule, half, level=SMALL_PRODUCT)
        # The approximation, because ELEVATER's code takes it and published numbers are compared to it.
        return self.up(recomputed(partial(F.gelu, approximate='tanh'), code), rule, half)


@METHODS.register_module()
class Compacter(Method):
    """Low-rank hypercomplex adapter.

    Args:
        specs: Blocks of the backbone.
        mid_dims: Bottleneck width; per layer where wanted.
        phm_dim: Number n of summands and size of the rules; divides the block width and ``mid_dims``.
        rank: Rank of the factors; per layer where wanted.
        share_rule: One rule for all PHM layers; False gives every layer its own.
        train_rule: Train the rules. False keeps them at their random start, as the published counts of ELEVATER's code
            imply.
        pre_norm: Own trainable LayerNorm on the adapter's input.
        init: 'zero_up' (zero ``right`` factor of the up-projection: exact start) or 'released' (the published start,
            which adds noise of unit size to every block).
        subs: Adapted sublayers.
        layers: Adapted blocks.

    Raises:
        ValueError: If a size is < 1, ``phm_dim`` does not divide a width, or a sublayer or ``init`` is unknown.
    """

    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 mid_dims: PerLayer = 64,
                 phm_dim: int = 4,
                 rank: PerLayer = 1,
                 share_rule: bool = True,
                 train_rule: bool = False,
                 pre_norm: bool = True,
                 init: str = 'zero_up',
                 subs: Union[str, Sequence[str]] = 'ffn',
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        if init not in ('zero_up', 'released'):
            raise ValueError(f"Compacter: init must be 'zero_up' or 'released', got {init!r}")
        self.subs, self.init = check_ops(subs, 'Compacter: subs', SUBS), init
        phm_dim = positive(phm_dim, 'phm_dim', 'Compacter')
        mids, ranks = self.spread(mid_dims, 'mid_dims', positive), self.spread(rank, 'rank', positive)
        rule = 'trained' if train_rule else 'frozen'
        # Before the blocks, so that it is the method's own key: petl.compacter.rule.
        add_rule(self, phm_dim, rule if share_rule else 'none')
        for i in self.layers:
            for name, width in (('block width', self.specs[i].dim), ('mid_dims', mids[i])):
                if width % phm_dim:
                    raise ValueError(f'Compacter: phm_dim={phm_dim} does not divide the {name} {width} of block {i}')
        own_rule = 'none' if share_rule else rule
        self.blocks = self.for_parts(self.subs, lambda i, sub: PHMBottleneck(
            self.specs[i].dim, mids[i], phm_dim, ranks[i], own_rule, pre_norm))
        self.reset_parameters()

    def branch_subs(self, index: int) -> Tuple[str, ...]:
        return self.subs

    def reset_parameters(self) -> None:
        for module in self.modules():
            if getattr(module, 'rule', None) is not None:
                nn.init.uniform_(module.rule, -1., 1.)
            if isinstance(module, PHMBottleneck):
                module.down.reset_parameters(zero=False)
                module.up.reset_parameters(zero=self.init == 'zero_up')
            # MMEngine's init_weights may have drawn the norm anew before it comes here.
            elif isinstance(module, nn.LayerNorm):
                module.reset_parameters()

    def on_branch(self, i: int, sub: str, residual: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """y (..., C) -> y + PHM_up(gelu(PHM_down(LN(y)))), (..., C)."""
        return y + self.blocks[str(i)][sub](y, self.rule, self.half)
