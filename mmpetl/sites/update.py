# SPDX-License-Identifier: Apache-2.0
"""The base class of methods that add a matrix to weights."""

from typing import Optional, Tuple

from torch import Tensor

from .method import Method


class Update(Method):
    """Base class of methods whose ``on_linear`` adds :meth:`delta` times x for the ops in ``self.ops``: abstract."""

    ops: Tuple[str, ...]
    rowwise = True

    def linear_ops(self, index: int) -> Tuple[str, ...]:
        return self.ops

    def delta(self, i: int, op: str) -> Tensor:
        """The update of the weight of one op of block ``i``, of shape (Cout, Cin)."""
        raise NotImplementedError

    def fold(self, i: int, op: str, weight: Tensor,
             bias: Optional[Tensor]) -> Optional[Tuple[Tensor, Optional[Tensor]]]:
        """weight (Cout, Cin), bias (Cout) -> the weight and its update, (Cout, Cin), and the same bias."""
        if i not in self.layers or op not in self.ops:
            return weight, bias
        return weight + self.delta(i, op).to(weight), bias
