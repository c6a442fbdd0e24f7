# SPDX-License-Identifier: Apache-2.0
"""RLRR: a rank-one re-scaled residual of every frozen weight, with a shift.

Dong et al., "Low-Rank Rescaled Vision Transformer Fine-Tuning: A Residual Design Approach",
https://arxiv.org/abs/2403.19067::

    y = (W + s_left * W * s_right^T) x + b + f        s_left (Cout), s_right (Cin), f (Cout)

for q, k, v, proj, fc1 and fc2. The patch embedding, both norms and the final norm are scaled and shifted as in SSF.
``s_left`` and ``s_right`` are Kaiming-uniform (in +-sqrt(6) and +-sqrt(6 / Cin)), ``f`` is zero, scales and shifts of
norms are drawn from N(1, 0.02^2) and N(0, 0.02^2): the start is near the frozen network, not exact.
"""

from typing import Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from ..recompute import ELEMENTWISE, recomputed
from ..registry import METHODS
from ..sites import ALL_OPS, NORMS, BlockSpec, Layers, add_product, check_ops, product_as
from .ssf import OnOpsAndNorms, ScaleShift


def rescaled(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """left (Cout) * W (Cout, Cin) * right (Cin), in the type of ``left``."""
    # As a product, whose gradients are products too.
    return product_as(weight, left[:, None] @ right[None], left.dtype)


@METHODS.register_module()
class RLRR(OnOpsAndNorms):
    """Low-rank rescaled residual.

    Args:
        specs: Blocks of the backbone.
        ops: Where to act: any of q, k, v, proj, fc1, fc2, gate, embed (patch embedding, with block 0), norm1, norm2 and
            final (final norm, with the last block); all by default, as published.
        layers: Adapted blocks.

    Raises:
        ValueError: If an op is unknown or no chosen op belongs to the adapted blocks.
    """

    tokenwise = True
    # The residual is that of the base's weight: what another method added before would be left out.
    first_on_op = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 ops: Union[str, Sequence[str]] = ALL_OPS + NORMS,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        self.ops = check_ops(ops, 'RLRR: ops', ALL_OPS + NORMS)
        self.blocks = self.for_blocks(self._build)
        if not any(len(block) for block in self.blocks.values()):
            raise ValueError(f"RLRR: ops {', '.join(self.ops)} do not occur in blocks {self.layers}")
        self.reset_parameters()

    def _build(self, i: int) -> nn.ModuleDict:
        parts = nn.ModuleDict({op: ScaleShift(self.specs[i].op_dims(op)[1]) for op in self.norm_ops(i)})
        for op in self.linear_ops(i):
            in_dims, out_dims = self.specs[i].op_dims(op)
            parts[op] = nn.ParameterDict(
                dict(left=torch.empty(out_dims), right=torch.empty(in_dims), shift=torch.empty(out_dims)))
        return parts

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            for part in block.values():
                if isinstance(part, ScaleShift):
                    nn.init.normal_(part.scale, 1., 0.02)
                    nn.init.normal_(part.shift, 0., 0.02)
                else:
                    # As a column and a row of matrices, whose fans give the two published bounds.
                    nn.init.kaiming_uniform_(part['left'][:, None])
                    nn.init.kaiming_uniform_(part['right'][None])
                    nn.init.zeros_(part['shift'])

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """x (..., Cin), y (..., Cout) -> y + (s_left * W * s_right^T) x + f, (..., Cout)."""
        part, weight = self.blocks[str(i)][op], self.frozen(i, op, 'read')[0]
        left, right, shift = (self.half(part[name]) for name in ('left', 'right', 'shift'))
        # As large as the weight, so it is made again in the backward pass.
        residual = recomputed(rescaled, weight, left, right, level=ELEMENTWISE)
        return add_product(y, x.to(residual.dtype), residual, 1., shift)

    def on_norm(self, i: int, op: str, y: Tensor) -> Tensor:
        """y (..., C) -> (..., C)."""
        return self.blocks[str(i)][op](y)

    def fold(self, i: int, op: str, weight: Tensor,
             bias: Optional[Tensor]) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
        """``weight`` (Cout, ...) of a linear op or patch embedding, or (C,) of a norm; a missing bias counts as
        zero."""
        if str(i) not in self.blocks or op not in self.blocks[str(i)]:
            return weight, bias
        part = self.blocks[str(i)][op]
        if isinstance(part, ScaleShift):
            scale, shift = part.scale.to(weight), part.shift.to(weight)
            return weight * scale.view(-1, *[1] * (weight.dim() - 1)), shift if bias is None else bias * scale + shift
        left, right, shift = (part[name].to(weight) for name in ('left', 'right', 'shift'))
        return weight + rescaled(weight, left, right), shift if bias is None else bias + shift
