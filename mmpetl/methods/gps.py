# SPDX-License-Identifier: Apache-2.0
"""GPS: of every neuron the few weights that the loss feels most.

Zhang et al., "Gradient-based Parameter Selection for Efficient Fine-Tuning", https://arxiv.org/abs/2312.10136::

    y = (W + M) x + b        M (Cout, Cin) has ``num_weights`` entries in every row, where |dL / dW| is largest

The gradient is that of a supervised contrastive loss on the features of the frozen network, summed over the training
data; no head is needed for it. The entries of M are trained and start at zero: the start is exact. They are held as
columns (Cout, num_weights) and values (Cout, num_weights). Until something has been chosen they are those of the
largest weights.
"""

from functools import partial
from typing import Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import OPS, BlockSpec, Layers, PerLayer, Update, add_product, check_ops, positive


class SparseRows(nn.Module):
    """``values`` (Cout, K) at the ``columns`` (Cout, K) of an otherwise empty matrix (Cout, Cin)."""

    def __init__(self, in_dims: int, out_dims: int, count: int) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.zeros(out_dims, count))
        # As wide as scattering takes them; narrower ones would be cast in every pass.
        self.register_buffer('columns', torch.arange(count).repeat(out_dims, 1))
        self.in_dims = in_dims

    def matrix(self, values: Tensor) -> Tensor:
        """(Cout, K) -> (Cout, Cin)."""
        return values.new_zeros(len(values), self.in_dims).scatter(1, self.columns, values)

    @torch.no_grad()
    def take(self, importance: Tensor) -> None:
        """Take the largest of each row of ``importance`` (Cout, Cin)."""
        self.columns.copy_(importance.topk(self.columns.shape[1]).indices.sort(1).values)


@METHODS.register_module()
class GPS(Update):
    """Gradient-based selection of weights of any of q, k, v, proj, fc1, fc2, gate.

    Args:
        specs: Blocks of the backbone.
        num_weights: Weights of each neuron that are trained; per layer where wanted.
        ops: Adapted ops, a list or letters such as ``'qv'``.
        layers: Adapted blocks.

    Raises:
        ValueError: If ``num_weights`` < 1 or larger than a neuron, an op is unknown, or a block lies outside the
            backbone.
    """

    tokenwise = True
    chooses_from = 'gradients'

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 num_weights: PerLayer = 1,
                 ops: Union[str, Sequence[str]] = OPS,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        self.ops, counts = check_ops(ops, 'GPS: ops'), self.spread(num_weights, 'num_weights', positive)
        for i in self.layers:
            widths = {op: self.specs[i].op_dims(op)[0] for op in self.ops}
            small = min(widths, key=lambda op: widths[op])
            if counts[i] > widths[small]:
                raise ValueError(f'GPS: num_weights={counts[i]}, but a neuron of {small} in block {i} has '
                                 f'{widths[small]} weights')
        self.blocks = self.for_parts(self.ops, lambda i, op: SparseRows(*self.specs[i].op_dims(op), counts[i]))
        self.register_buffer('chosen', torch.zeros((), dtype=torch.bool))
        #: Gradients that were noted, by block and op; None: nothing is noted.
        self._sums: Optional[Dict[Tuple[int, str], Tensor]] = None

    def reset_parameters(self) -> None:
        """Zero the values; what was chosen stays."""
        for block in self.blocks.values():
            for rows in block.values():
                nn.init.zeros_(rows.values)

    def on_loaded(self) -> None:
        """Where nothing was chosen or trained, take the largest weights."""
        if not self.chosen and not any(p.any() for p in self.parameters()):
            for i in self.layers:
                for op, rows in self.blocks[str(i)].items():
                    rows.take(self.frozen(i, op)[0].abs())

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """x (..., Cin), y (..., Cout) -> y + M x, (..., Cout)."""
        rows = self.blocks[str(i)][op]
        update = recomputed(rows.matrix, self.half(rows.values), level=SMALL_PRODUCT)
        y = add_product(y, x.to(update.dtype), update)
        if self._sums is not None and y.requires_grad:
            # The values are zero: y is the frozen network's, and its gradient tells that of the whole weight.
            y.register_hook(partial(self._felt, (i, op), x.detach()))
        return y

    def delta(self, i: int, op: str) -> Tensor:
        """The update of the weight, M (Cout, Cin)."""
        rows = self.blocks[str(i)][op]
        return rows.matrix(rows.values)

    # -- the choice ---------------------------------------------------------------------------------------------------

    def _felt(self, place: Tuple[int, str], x: Tensor, gradient: Tensor) -> None:
        """Add dL / dW = gradient^T x of x (..., Cin) and the gradient of y (..., Cout)."""
        assert self._sums is not None
        total = self._sums[place]
        total.addmm_(gradient.flatten(0, -2).to(total.dtype).t(), x.flatten(0, -2).to(total.dtype))

    def look(self, classes: int) -> None:
        self._sums = {}
        for i in self.layers:
            for op, rows in self.blocks[str(i)].items():
                nn.init.zeros_(rows.values)
                self._sums[i, op] = rows.values.new_zeros(len(rows.values), rows.in_dims)

    def noted(self) -> Tuple[Tensor, ...]:
        """The gradients of all adapted weights, (Cout, Cin) each."""
        return tuple((self._sums or {}).values())

    def choose(self) -> str:
        sums, self._sums = self._sums or {}, None
        silent: List[str] = [f'{op} of block {i}' for (i, op), total in sums.items() if not total.any()]
        if len(silent) == len(sums):
            raise ValueError('GPS: no gradient came to any weight: are there two classes, and two samples of one of '
                             'them, in a batch?')
        for (i, op), total in sums.items():
            self.blocks[str(i)][op].take(total.abs())
        self.chosen.fill_(True)
        return f'GPS: {sum(p.numel() for p in self.parameters()):,} weights by their gradients'
