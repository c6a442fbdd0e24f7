# SPDX-License-Identifier: Apache-2.0
"""VeRA: two learned vectors beside random matrices that all blocks share.

Kopiczko et al., "VeRA: Vector-based Random Matrix Adaptation", https://arxiv.org/abs/2310.11454, equation 2::

    y = W x + b + l_b * (B (l_d * (A dropout(x))))      A (rank, Cin), B (Cout, rank) frozen and shared

``A`` and ``B`` are Kaiming-uniform; an op of smaller width takes their first columns or rows. ``l_b`` (Cout) starts at
zero, so the start is exact, and ``l_d`` (rank) at 0.1.
"""

from typing import Sequence, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..recompute import SMALL_PRODUCT, recomputed
from ..registry import METHODS
from ..sites import BlockSpec, Layers, Update, add_product, check_ops, positive


def shared_matrix(rows: int, columns: int, seed: int, number: int) -> Tensor:
    """Kaiming-uniform (rows, columns): uniform in +-sqrt(6 / columns).

    The numbers are the raw stream of PCG64, which NumPy keeps the same in all versions, because an adapter stores the
    seed only.
    """
    # torch gives other numbers on other devices and in other versions; an adapter must mean the same
    # matrices everywhere.
    raw = np.random.PCG64(np.random.SeedSequence((seed, number))).random_raw(rows * columns)
    # The 24 upper bits: exactly what a float32 between 0 and 1 can tell apart.
    unit = (raw >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
    return torch.from_numpy((2 * unit - 1) * np.float32((6 / columns)**0.5)).view(rows, columns)


@METHODS.register_module()
class VeRA(Update):
    """Vector-based random matrix adaptation of any of q, k, v, proj, fc1, fc2, gate.

    Args:
        specs: Blocks of the backbone.
        rank: Rank of the shared matrices.
        ops: Adapted ops, a list or letters such as ``'qv'``.
        d_initial: Start of ``l_d``.
        drop_rate: Dropout on the input of the branch.
        seed: Of the shared matrices, which are drawn anew and not stored.
        stored: The matrices are part of the adapter, because they came from elsewhere and no seed gives them.
        layers: Adapted blocks.

    Raises:
        ValueError: If ``rank`` < 1, ``seed`` < 0 or an op is unknown.
    """

    tokenwise = True

    def __init__(self,
                 specs: Sequence[BlockSpec],
                 rank: int = 256,
                 ops: Union[str, Sequence[str]] = 'qv',
                 d_initial: float = 0.1,
                 drop_rate: float = 0.,
                 seed: int = 0,
                 stored: bool = False,
                 layers: Layers = None) -> None:
        super().__init__(specs, layers)
        self.ops, self.d_initial = check_ops(ops, 'VeRA: ops'), d_initial
        rank = positive(rank, 'rank', 'VeRA')
        if seed < 0:
            raise ValueError(f'VeRA: seed must be >= 0, got {seed!r}')
        self.drop = nn.Dropout(drop_rate) if drop_rate else nn.Identity()
        # The largest widths of all adapted ops: smaller ones read a part of the same matrices.
        dims = [self.specs[i].op_dims(op) for i in self.layers for op in self.ops]
        shapes = (rank, max(d for d, _ in dims)), (max(d for _, d in dims), rank)
        for number, (name, shape) in enumerate(zip('ab', shapes)):
            # On the device of this context: a model can be built without memory.
            matrix = shared_matrix(*shape, seed, number).to(torch.empty(()).device)
            self.register_buffer(name, matrix, persistent=stored)
        # Only vectors are trained and stored.
        self.blocks = self.for_parts(self.ops, lambda i, op: nn.ParameterDict(
            dict(d=torch.empty(rank), b=torch.empty(self.specs[i].op_dims(op)[1]))))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for block in self.blocks.values():
            for vectors in block.values():
                nn.init.constant_(vectors['d'], self.d_initial)
                nn.init.zeros_(vectors['b'])

    def on_linear(self, i: int, op: str, x: Tensor, y: Tensor) -> Tensor:
        """x (..., Cin), y (..., Cout) -> y + l_b * (B (l_d * (A dropout(x)))), (..., Cout)."""
        vectors = self.blocks[str(i)][op]
        # Frozen, unlike a scaled matrix: the product does not keep x.
        code = recomputed(F.linear, self.drop(x), self.half(self.a, frozen=True)[:, :x.shape[-1]], level=SMALL_PRODUCT)
        # On the code of ``rank`` numbers per token, which is small.
        code = recomputed(torch.mul, code, self.half(vectors['d']).to(code.dtype))
        # l_b scales rows of B, not the wide output; that product is the size of a weight, not of the
        # tokens.
        return add_product(y, code, self.half(vectors['b'])[:, None] * self.half(self.b, frozen=True)[:y.shape[-1]])

    def delta(self, i: int, op: str) -> Tensor:
        """The update of the weight, diag(l_b) B diag(l_d) A, of shape (Cout, Cin)."""
        vectors, (in_dims, out_dims) = self.blocks[str(i)][op], self.specs[i].op_dims(op)
        return (vectors['b'][:, None] * self.b[:out_dims]) @ (vectors['d'][:, None] * self.a[:, :in_dims])
