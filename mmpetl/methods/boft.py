# SPDX-License-Identifier: Apache-2.0
"""BOFT: rotations of what frozen linear ops read, as products of sparse butterfly factors.

Liu et al., "Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization", https://arxiv.org/abs/2311.06243,
equations 2 and 3::

    y = s * (W R^T x) + b,    R = B_m ... B_2 B_1        every B_j orthogonal, with blocks of block_size

``B_1`` is block-diagonal as in OFT. In ``B_j`` a block joins half a block of channels with the half block that lies
2^(j-2) half blocks further on, so that after m factors 2^(m-1) block_size channels are mixed. The blocks are Cayley
transforms (I - Q) (I + Q)^-1 of skew-symmetric Q, zero at the start, and ``s`` (Cout) is one: the start is exact.
"""

from typing import Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from ..recompute import recomputed
from ..registry import METHODS
from ..sites import BlockSpec, Layers, Method, check_ops, positive, scale_about
from .oft import Skew, rotate


def butterfly(x: Tensor, rotations: Tensor) -> Tensor:
    """x (..., C) times B_m ... B_1 from the right; ``rotations`` (m, C / b, b, b)."""
    half = rotations.shape[-1] // 2
    # x stands on the left, so the last factor is applied first.
    for j in reversed(range(1, len(rotations))):
        # Half blocks: (groups, first or second of a pair, place in the pair's span, channels).
        pairs = x.unflatten(-1, (-1, 2, 2**j, half)).transpose(-3, -2)
        turned = rotate(pairs.flatten(-4), rotations[j])
        x = turned.unflatten(-1, (-1, 2**j, 2, half)).transpose(-3, -2).flatten(-4)
    return rotate(x, rotations[0])


@METHODS.register_module()
class BOFT(Method):
    """Butterfly orthogonal fine-tuning of any of q, k, v, proj, fc1, fc2, gate.

    Args:
        specs: Blocks of the backbone.
        block_size: Side b of the blocks.
        factors: Butterfly factors m; b 2^(m-1) must divide the input width of every op.
        ops: Adapted ops, a list or letters such as ``'qv'``.
        layers: Adapted blocks.

    Raises:
        ValueError: If ``block_size`` is odd (unless ``factors`` is 1) or < 2, ``factors`` < 1, b 2^(m-1) does not
            divide a width, an op is unknown, or a block lies outside the backbone.
    """

    tokenwise = True
    # The factors s stand at the output of the rotated base alone.
    first_on_op = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 block_size: int = 8,
                 factors: int = 2,
                 ops: Union[str, Sequence[str]] = 'qv',
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        self.ops = check_ops(ops, 'BOFT: ops')
        self.block_size = positive(block_size, 'block_size', 'BOFT')
        self.factors = positive(factors, 'factors', 'BOFT')
        if block_size < 2 or (block_size % 2 and factors > 1):
            raise ValueError(f'BOFT: block_size must be even, got {block_size}')
        self.skew = Skew(block_size)
        self.blocks = self.for_parts(self.ops, lambda i, op: nn.ParameterDict(
            dict(upper=self._upper(i, op), scale=torch.empty(self.specs[i].op_dims(op)[1]))))
        self.reset_parameters()

    def _upper(self, i: int, op: str) -> Tensor:
        width, size = self.specs[i].op_dims(op)[0], self.block_size
        # Channels that m factors mix with each other: the width is cut into such spans.
        span = size * 2**(self.factors - 1)
        if width % span:
            raise ValueError(f'BOFT: block_size={size} times 2^(factors - 1) is {span}, which does not divide {width}, '
                             f'the input width of {op} in block {i}')
        return torch.empty(self.factors, width // size, size * (size - 1) // 2)

    def linear_ops(self, index: int) -> Tuple[str, ...]:
        return self.ops

    def input_ops(self, index: int) -> Tuple[str, ...]:
        return self.ops

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            for held in block.values():
                nn.init.zeros_(held['upper'])
                nn.init.ones_(held['scale'])

    def rotations(self, i: int, op: str, dtype: Optional[torch.dtype] = None) -> Tensor:
        """Blocks of the factors B_1, ..., B_m of one op: (M, R, D, D) with D = block_size and R D = C, in ``dtype``."""
        upper = self.blocks[str(i)][op]['upper']
        # (I - Q) (I + Q)^-1, as released, is the transpose of OFT's.
        return self.skew.rotations(upper.flatten(0, 1), 0, dtype).transpose(-2, -1).unflatten(0, upper.shape[:2])

    def on_input(self, i: int, op: str, x: Tensor) -> Tensor:
        """x (..., Cin) -> R^T x, (..., Cin)."""
        return recomputed(butterfly, x, self.rotations(i, op, x.dtype))

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """y (..., Cout) -> s * (y - b) + b, (..., Cout)."""
        scale, bias = self.blocks[str(i)][op]['scale'], self.frozen(i, op, 'read')[1]
        # The bias is in y already and is not scaled.
        return scale_about(y, scale, bias)

    def fold(self, i: int, op: str, weight: Tensor,
             bias: Optional[Tensor]) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
        """weight (Cout, Cin), bias (Cout) -> same shapes."""
        if i not in self.layers or op not in self.ops:
            return weight, bias
        return self.blocks[str(i)][op]['scale'][:, None].to(weight) * weight, bias

    def fold_input(self, i: int, op: str, weight: Tensor) -> Optional[Tensor]:
        """weight (Cout, Cin) -> (Cout, Cin)."""
        rotations = self.rotations(i, op).to(weight)
        # Through the same function as the forward pass, so that merging cannot disagree with it about the
        # permutation.
        whole = butterfly(torch.eye(weight.shape[1]).to(weight), rotations)
        return weight @ whole.T
