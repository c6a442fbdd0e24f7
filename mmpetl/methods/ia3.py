# SPDX-License-Identifier: Apache-2.0
"""IA3: learned factors on the outputs (or inputs) of frozen linear ops.

Liu et al., "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning",
https://arxiv.org/abs/2205.05638, section 3.3: keys, values and the hidden state of the feed-forward network are
multiplied, element by element, by vectors that start at one::

    softmax(Q (l_k * K)^T / sqrt(d)) (l_v * V),    (l_ff * act(W_1 x)) W_2

Factors on keys and values stand at the output of k and v; ``l_ff`` stands at the input of fc2.
"""

from typing import Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from ..registry import METHODS
from ..sites import ALL_OPS, BlockSpec, Layers, Method, check_ops, scale_shift


@METHODS.register_module()
class IA3(Method):
    """Factors of linear ops. The published form is two of them: ``ops='kv'`` and ``ops='fc2', at='input'``.

    Args:
        specs: Blocks of the backbone.
        ops: Scaled ops, a list or letters such as ``'kv'``.
        at: 'output' or 'input': which side of the ops is scaled.
        layers: Adapted blocks.

    Raises:
        ValueError: If an op or ``at`` is unknown, or a block lies outside the backbone.
    """

    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 ops: Union[str, Sequence[str]] = 'kv',
                 at: str = 'output',
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        if at not in ('output', 'input'):
            raise ValueError(f"IA3: at must be 'output' or 'input', got {at!r}")
        self.ops, self.at = check_ops(ops, 'IA3: ops', ALL_OPS), at
        # op_dims gives (Cin, Cout).
        side = 1 if at == 'output' else 0
        self.blocks = self.for_blocks(
            lambda i: nn.ParameterDict({op: torch.empty(self.specs[i].op_dims(op)[side]) for op in self.ops}))
        self.reset_parameters()

    def active(self, point: str, index: int) -> bool:
        # Both points are overridden in the class, but one object acts at one of them; otherwise taps would
        # call it at both.
        return super().active(point, index) and point == ('linear' if self.at == 'output' else 'input')

    def linear_ops(self, index: int) -> Tuple[str, ...]:
        return self.ops

    def input_ops(self, index: int) -> Tuple[str, ...]:
        return self.ops

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """y (..., Cout) -> y * l, (..., Cout)."""
        return scale_shift(y, self.blocks[str(i)][op])

    def on_input(self, i: int, op: str, x: Tensor) -> Tensor:
        """x (..., Cin) -> x * l, (..., Cin)."""
        return scale_shift(x, self.blocks[str(i)][op])

    def fold(self, i: int, op: str, weight: Tensor,
             bias: Optional[Tensor]) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
        """weight (Cout, Cin), bias (Cout) -> both times l (Cout) along the outputs."""
        if i not in self.layers or op not in self.ops:
            return weight, bias
        factor = self.blocks[str(i)][op].to(weight)
        # The factor stands behind the bias at run time, so it scales the bias too.
        return weight * factor[:, None], None if bias is None else bias * factor

    def fold_input(self, i: int, op: str, weight: Tensor) -> Optional[Tensor]:
        """weight (Cout, Cin) -> weight times l (Cin) along the inputs."""
        return weight * self.blocks[str(i)][op].to(weight)
