# SPDX-License-Identifier: Apache-2.0
"""DiffFit: a learned factor on every sublayer's output, beside the base's biases and norms.

Xie et al., "DiffFit: Unlocking Transferability of Large Diffusion Models via Simple Parameter-Efficient Fine-Tuning",
https://arxiv.org/abs/2304.06648, section 3.1::

    x <- x + g_attn attention(norm1(x)),    x <- x + g_ffn ffn(norm2(x))        g_attn, g_ffn scalars, one at the start

Biases and norms are the base's own: ``tune=['*bias', '*ln*']`` (or ``'*norm*'``) lets them train. The factors scale the
outputs of proj and fc2, with their biases, and merge into them.
"""

from typing import Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from ..recompute import recomputed
from ..registry import METHODS
from ..sites import SUBS, BlockSpec, Layers, Method, check_ops, scaled

#: The last op of a sublayer.
LAST_OP = dict(attn='proj', ffn='fc2')


@METHODS.register_module()
class DiffFit(Method):
    """Factors of the sublayers.

    Args:
        specs: Blocks of the backbone.
        subs: Scaled sublayers.
        layers: Adapted blocks.

    Raises:
        ValueError: If a sublayer is unknown, a block lies outside the backbone, or norms stand behind its sublayers.
    """

    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 subs: Union[str, Sequence[str]] = SUBS,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        self.refuse_post_norm('undo every factor')
        self.subs = check_ops(subs, 'DiffFit: subs', SUBS)
        # Keyed by op, not by sublayer, as the method is asked by op.
        self.blocks = self.for_blocks(lambda i: nn.ParameterDict({LAST_OP[sub]: torch.empty(1) for sub in self.subs}))
        self.reset_parameters()

    def linear_ops(self, index: int) -> Tuple[str, ...]:
        return tuple(LAST_OP[sub] for sub in self.subs)

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.ones_(parameter)

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """y (..., Cout) -> g y, (..., Cout)."""
        return recomputed(scaled, y, self.half(self.blocks[str(i)][op]).to(y.dtype))

    def fold(self, i: int, op: str, weight: Tensor,
             bias: Optional[Tensor]) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
        """weight (Cout, Cin), bias (Cout) -> same shapes."""
        if i not in self.layers or op not in self.linear_ops(i):
            return weight, bias
        factor = self.blocks[str(i)][op].to(weight)
        return weight * factor, None if bias is None else bias * factor
