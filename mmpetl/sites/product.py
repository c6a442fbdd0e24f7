# SPDX-License-Identifier: Apache-2.0
"""Products with a factor inside: the sum of an op's output and a low-rank product, and a scaled batched product."""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .half import autocast_dtype


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


class _ScaledProduct(torch.autograd.Function):
    """scale * a @ b, with the scale inside the products of the backward pass too."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.scale = scale
        return _times(a, b, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tuple[Optional[Tensor], ...]:
        (grad, ), (a, b), scale = grads, ctx.saved_tensors, ctx.scale
        need_a, need_b, _ = ctx.needs_input_grad
        return (_times(grad, b.transpose(1, 2), scale) if need_a else None,
                _times(a.transpose(1, 2), grad, scale) if need_b else None, None)


def _times(a: Tensor, b: Tensor, scale: float) -> Tensor:
    # What is added has the factor 0: only its shape is read.
    return torch.baddbmm(a.new_empty(1, 1, 1), a, b, beta=0, alpha=scale)


def scaled_product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """``scale * a @ b`` by one kernel; (B, N, K), (B, K, M) -> (B, N, M)."""
    return _ScaledProduct.apply(a, b, scale) if own_gradient(a, b) else a @ b * scale


class _ScaledSum(torch.autograd.Function):
    """x + scale * y with one factor for all."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(scale, y)
        ctx.shape = x.shape
        return torch.addcmul(x, scale, y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tuple[Optional[Tensor], ...]:
        (grad, ), (scale, y) = grads, ctx.saved_tensors
        need_x, need_scale, need_y = ctx.needs_input_grad
        summed = grad.sum_to_size(y.shape)
        return (grad.sum_to_size(ctx.shape) if need_x else None,
                torch.dot(summed.flatten(), y.flatten()).view_as(scale) if need_scale else None,
                summed * scale if need_y else None)


def scaled_sum(x: Tensor, scale: Tensor, y: Tensor) -> Tensor:
    """``x + scale * y`` with a learned factor (1, ); y is broadcast to the shape of x."""
    return _ScaledSum.apply(x, scale, y) if own_gradient(x, scale, y) else x + scale * y


def own_gradient(*tensors: Tensor) -> bool:
    """Whether a formula of ``tensors`` (...) may bring its own backward pass: nothing is traced, and types are equal
    and stay so."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or len({t.dtype for t in tensors}) > 1:
        return False
    return tensors[0].dtype is not torch.float32 or autocast_dtype(tensors[0]) is None


class _ScaleShift(torch.autograd.Function):
    """scale * y + shift by one kernel, in the precision of y; formed in float32 where y is in half precision."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        ctx.save_for_backward(y, scale)
        return torch.addcmul(shift, y, scale, out=torch.empty_like(y))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        (y, scale), rows = ctx.saved_tensors, tuple(range(grad.dim() - 1))
        need_y, need_scale, need_shift = ctx.needs_input_grad
        return (torch.mul(grad, scale, out=torch.empty_like(grad)) if need_y else None,
                (grad * y).sum(rows, dtype=scale.dtype) if need_scale else None,
                grad.sum(rows, dtype=scale.dtype) if need_shift else None)


def scale_shift(y: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale (C) * y (..., C) + shift (C) -> (..., C), in the precision of y; formed in float32 where y is in half
    precision."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or scale.dtype != shift.dtype:
        return torch.addcmul(shift, y, scale).to(y.dtype)
    return _ScaleShift.apply(y, scale, shift)
