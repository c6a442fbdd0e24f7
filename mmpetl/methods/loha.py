# SPDX-License-Identifier: Apache-2.0
"""LoHa: updates that are the element-wise product of two low-rank matrices.

Hyeon-Woo et al., "FedPara: Low-Rank Hadamard Product for Communication-Efficient Federated Learning",
https://arxiv.org/abs/2108.06098, proposition 1; as an adapter Yeh et al., "Navigating Text-To-Image Customization: From
LyCORIS Fine-Tuning to Model Evaluation", https://arxiv.org/abs/2309.14859::

    y = W x + b + s ((U_1 D_1) * (U_2 D_2)) dropout(x)        s = alpha / rank

The product has a rank of up to rank^2. ``D_1`` and ``D_2`` (rank, Cin) are drawn from N(0, 1), ``U_1`` (Cout, rank)
from N(0, 0.1^2), ``U_2`` (Cout, rank) is zero: the start is exact.
"""

import math
from typing import Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import BlockSpec, Layers, PerLayer, Update, add_product, check_ops, positive


def hadamard(up1: Tensor, down1: Tensor, up2: Tensor, down2: Tensor) -> Tensor:
    """(U_1 D_1) * (U_2 D_2), of shape (Cout, Cin)."""
    return (up1 @ down1) * (up2 @ down2)


class Hadamard(nn.Module):
    """The four factors of one op."""

    def __init__(self, in_dims: int, out_dims: int, rank: int) -> None:
        super().__init__()
        # No layers but bare factors: their product is formed before it meets a token.
        self.down1, self.down2 = (nn.Parameter(torch.empty(rank, in_dims)) for _ in range(2))
        self.up1, self.up2 = (nn.Parameter(torch.empty(out_dims, rank)) for _ in range(2))

    def factors(self) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
        """U_1 (Cout, rank), D_1 (rank, Cin), U_2 and D_2, as :func:`hadamard` takes them."""
        return self.up1, self.down1, self.up2, self.down2


@METHODS.register_module()
class LoHa(Update):
    """Low-rank Hadamard product adaptation of any of q, k, v, proj, fc1, fc2, gate.

    Args:
        specs: Blocks of the backbone.
        rank: Rank of each of the two matrices; per layer where wanted.
        ops: Adapted ops, a list or letters such as ``'qv'``.
        alpha: Numerator of the scale ``alpha / rank``; None means scale 1. Per layer where wanted.
        drop_rate: Dropout on the input of the branch.
        init: 'lycoris' (see above) or 'kaiming' (``U_1``, ``D_1`` and ``U_2`` Kaiming-uniform, ``D_2`` zero, as peft).
        layers: Adapted blocks.

    Raises:
        ValueError: If ``rank`` < 1, an op or ``init`` is unknown, or a block lies outside the backbone.
    """

    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 rank: PerLayer = 4,
                 ops: Union[str, Sequence[str]] = 'qv',
                 alpha: PerLayer = None,
                 drop_rate: float = 0.,
                 init: str = 'lycoris',
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        if init not in ('lycoris', 'kaiming'):
            raise ValueError(f"LoHa: init must be 'lycoris' or 'kaiming', got {init!r}")
        self.ops, self.init = check_ops(ops, 'LoHa: ops'), init
        ranks, alphas = self.spread(rank, 'rank', positive), self.spread(alpha, 'alpha')
        self.scales = {i: 1. if alphas[i] is None else alphas[i] / ranks[i] for i in self.layers}
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        self.blocks = self.for_parts(self.ops, lambda i, op: Hadamard(*self.specs[i].op_dims(op), ranks[i]))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            for f in block.values():
                if self.init == 'lycoris':
                    # LyCORIS's numbers. One of the four factors is zero, so the update is; the other three are not, so
                    # gradients flow.
                    for tensor, std in ((f.up1, 0.1), (f.down1, 1.), (f.down2, 1.)):
                        nn.init.normal_(tensor, std=std)
                    nn.init.zeros_(f.up2)
                else:
                    for tensor in (f.up1, f.down1, f.up2):
                        nn.init.kaiming_uniform_(tensor, a=math.sqrt(5))
                    nn.init.zeros_(f.down2)

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """x (..., Cin), y (..., Cout) -> y + s ((U_1 D_1) * (U_2 D_2)) dropout(x), (..., Cout)."""
        factors = (self.half(t) for t in self.blocks[str(i)][op].factors())
        # The (Cout, Cin) update is as large as the weight; computed again in the backward pass, it is not
        # kept for it.
        update = recomputed(hadamard, *factors, level=SMALL_PRODUCT)
        # x itself is the code here: the update has full rank, so nothing small stands between.
        return add_product(y, self.drop(x).to(update.dtype), update, self.scales[i])

    def delta(self, i: int, op: str) -> Tensor:
        """The update of the weight, of shape (Cout, Cin)."""
        return self.scales[i] * hadamard(*self.blocks[str(i)][op].factors())
