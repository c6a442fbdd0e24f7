"""The sum of an op's output and a low-rank product."""

from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor


def add_product(y: Tensor, code: Tensor, weight: Tensor, scale: float = 1., bias: Optional[Tensor] = None) -> Tensor:
    """``y + scale * (code @ weight^T + bias)``, without a tensor for the product where the types are equal.

    Args:
        y: (..., Cout).
        code: (..., rank), with the same leading axes.
        weight: (Cout, rank).
        scale: Factor of the sum.
        bias: (Cout, ), or None.
    """
    if y.dtype != code.dtype or y.dim() < 2 or y.shape[:-1] != code.shape[:-1]:
        return torch.add(y, F.linear(code, weight, bias), alpha=scale)  # the sum has the wider type
    rows, code = y.flatten(0, -2), code.flatten(0, -2)
    if bias is None:
        total = torch.addmm(rows, code, weight.t(), alpha=scale)
    else:
        if scale != 1:
            weight, bias = scale * weight, scale * bias  # small, unlike the product
        # In place, and flat: writing into a view would make the backward pass copy.
        total = F.linear(code, weight, bias).add_(rows)
    return total.unflatten(0, y.shape[:-1])
