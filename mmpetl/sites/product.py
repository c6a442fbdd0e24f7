# SPDX-License-Identifier: Apache-2.0
"""The sum of an op's output and a low-rank product."""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor


class _AddMM(torch.autograd.Function):
    """rows + scale * code @ weight^T, with the scale inside the products of the backward pass too."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, code: Tensor, weight: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(code, weight)
        ctx.scale = scale
        return torch.addmm(rows, code, weight.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tuple[Optional[Tensor], ...]:
        grad, (code, weight), scale = grads[0], ctx.saved_tensors, ctx.scale
        need_rows, need_code, need_weight, _ = ctx.needs_input_grad
        # What is added has the factor 0: only its shape is read.
        code_grad = torch.addmm(code, grad, weight, beta=0, alpha=scale) if need_code else None
        weight_grad = torch.addmm(weight, grad.t(), code, beta=0, alpha=scale) if need_weight else None
        return grad if need_rows else None, code_grad, weight_grad, None


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
        if scale == 1 or weight.dtype != code.dtype or torch.compiler.is_compiling():
            total = torch.addmm(rows, code, weight.t(), alpha=scale)
        else:
            total = _AddMM.apply(rows, code, weight, scale)
    else:
        if scale != 1:
            weight, bias = scale * weight, scale * bias  # small, unlike the product
        # In place, and flat: writing into a view would make the backward pass copy.
        total = F.linear(code, weight, bias).add_(rows)
    return total.unflatten(0, y.shape[:-1])
