# SPDX-License-Identifier: Apache-2.0
"""Products with a factor inside: the sum of an op's output and a low-rank product, and a scaled batched product."""

from typing import Any, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from .half import as_given, autocast_dtype


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


class _Scaled(torch.autograd.Function):
    """scale * y with one factor for all."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(y, scale)
        return y * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        y, scale = ctx.saved_tensors
        need_y, need_scale = ctx.needs_input_grad
        return (grad * scale if need_y else None,
                torch.dot(grad.flatten(), y.flatten()).view_as(scale) if need_scale else None)


def scaled(y: Tensor, scale: Tensor) -> Tensor:
    """``scale * y`` with a learned factor (1, ) for all of y (...)."""
    return _Scaled.apply(y, scale) if own_gradient(y, scale) else y * scale


def own_gradient(*tensors: Tensor) -> bool:
    """Whether a formula of ``tensors`` (...) may bring its own backward pass: nothing is traced, and types are equal
    and stay so."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or len({t.dtype for t in tensors}) > 1:
        return False
    return tensors[0].dtype is not torch.float32 or autocast_dtype(tensors[0]) is None


def _plain_ops() -> bool:
    """Whether a formula is left to torch's own operations: a tracer or compiler cannot follow ``out=``."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


class _ProductAs(torch.autograd.Function):
    """a * b by one kernel that also rounds to another type."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.mul(a, b, out=torch.empty(torch.broadcast_shapes(a.shape, b.shape), dtype=dtype, device=a.device))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        a, b = ctx.saved_tensors
        need_a, need_b, _ = ctx.needs_input_grad
        return _part_of(grad, b, a) if need_a else None, _part_of(grad, a, b) if need_b else None, None


def _part_of(grad: Tensor, other: Tensor, like: Tensor) -> Tensor:
    """grad * other, summed to the shape of ``like`` (...), in its type."""
    if grad.shape == like.shape:
        return torch.mul(grad, other, out=torch.empty_like(like))
    return (grad * other).sum_to_size(like.shape).to(like.dtype)


def product_as(a: Tensor, b: Tensor, dtype: Optional[torch.dtype]) -> Tensor:
    """``a * b``, broadcast, in another type: rounded once and without a kernel of its own for it.

    Args:
        a, b: (...), small, such as a weight and its factors.
        dtype: Of the result; None leaves it.
    """
    if dtype is None or a.dtype is dtype and b.dtype is dtype:
        return a * b
    return (a * b).to(dtype) if _plain_ops() else _ProductAs.apply(a, b, dtype)


class _SumAs(torch.autograd.Function):
    """a + b by one kernel that also rounds to another type."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, alpha: float, dtype: torch.dtype, fork: Any) -> Tensor:
        ctx.types, ctx.alpha, ctx.fork = (a.dtype, b.dtype), alpha, fork
        return torch.add(a, b, alpha=alpha, out=torch.empty(a.shape, dtype=dtype, device=a.device))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        need_a, need_b, *_ = ctx.needs_input_grad
        of_b = None
        if need_b:
            # Scaled and cast by one kernel.
            like = torch.empty_like(grad, dtype=ctx.types[1])
            of_b = grad if ctx.alpha == 1 else torch.mul(grad, ctx.alpha, out=like)
        of_a = grad if need_a else None
        if of_a is not None and ctx.fork is not None:
            # Handed over as it is: autograd would cast it before it adds it.
            ctx.fork.noted.append(of_a)
            of_a = None
        return of_a, of_b, None, None, None


def sum_as(a: Tensor, b: Tensor, dtype: Optional[torch.dtype], alpha: float = 1.) -> Tensor:
    """``a + alpha * b`` of one shape (...) in another type, by one kernel; None leaves the type."""
    if dtype is None or a.dtype is dtype and b.dtype is dtype:
        return torch.add(a, b, alpha=alpha)
    if _plain_ops():
        return torch.add(a, b, alpha=alpha).to(dtype)
    fork = a.grad_fn if isinstance(a.grad_fn, _Fork._backward_cls) and a.dtype is not dtype else None
    return _SumAs.apply(a, b, alpha, dtype, fork)


class _Fork(torch.autograd.Function):
    """x twice; what :func:`sum_as` hands over is added to the gradient in its own type."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.noted = []
        return x.view_as(x), x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Optional[Tensor]) -> Optional[Tensor]:
        found, ctx.noted = [*(grad for grad in grads if grad is not None), *ctx.noted], []
        total = found[0] if found else None
        for grad in found[1:]:
            total = torch.add(total, grad, out=torch.empty_like(grad, dtype=torch.float32))
        return total


def forked(x: Tensor) -> Tuple[Tensor, Tensor]:
    """x (...) for a sum, and x for those who read it in another type by :func:`sum_as`; the same but for the backward
    pass under autocast."""
    half = autocast_dtype(x)
    if half is None or x.dtype is not torch.float32 or not x.requires_grad or _plain_ops():
        return x, x
    return _Fork.apply(x)


class _Beside(torch.autograd.Function):
    """x, and x in another type; the two gradients meet in one kernel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype) -> Tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return x.view_as(x), x.to(dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Optional[Tensor], half: Optional[Tensor]) -> Tuple[Optional[Tensor], None]:
        return (grad if half is None else half if grad is None else grad + half), None


def beside(x: Tensor) -> Tuple[Tensor, Tensor]:
    """x (...) for a sum, and x as products read it: under autocast in half precision. All who read x take one of the
    two."""
    half = autocast_dtype(x)
    if half is None or x.dtype is not torch.float32 or not x.requires_grad or _plain_ops():
        return x, x
    return _Beside.apply(x, half)


class _ScaleShift(torch.autograd.Function):
    """scale * y + shift by one kernel, in the precision of y; formed in float32 where y is in half precision."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: Tensor, shift: Optional[Tensor]) -> Tensor:
        ctx.save_for_backward(y, scale)
        out = torch.empty_like(y)
        return torch.mul(y, scale, out=out) if shift is None else torch.addcmul(shift, y, scale, out=out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        (y, scale), rows = ctx.saved_tensors, tuple(range(grad.dim() - 1))
        need_y, need_scale, need_shift = ctx.needs_input_grad
        return (torch.mul(grad, scale, out=torch.empty_like(grad)) if need_y else None,
                (grad * y).sum(rows, dtype=scale.dtype) if need_scale else None,
                grad.sum(rows, dtype=scale.dtype) if need_shift else None)


def scale_shift(y: Tensor, scale: Tensor, shift: Optional[Tensor] = None) -> Tensor:
    """scale (C) * y (..., C) + shift (C), if any -> (..., C), in the precision of y; formed in float32 where y is in
    half precision."""
    if shift is None:
        return (y * scale).to(y.dtype) if _plain_ops() else _ScaleShift.apply(y, scale, None)
    if _plain_ops() or scale.dtype != shift.dtype:
        return torch.addcmul(shift, y, scale).to(y.dtype)
    return _ScaleShift.apply(y, scale, shift)


class _ScaleAbout(torch.autograd.Function):
    """See :func:`scale_about`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, scale: Tensor, centre: Tensor) -> Tensor:
        ctx.save_for_backward(y, scale, centre)
        with as_given(y):
            shift = torch.addcmul(centre, centre, scale, value=-1)
        return torch.addcmul(shift, y, scale, out=torch.empty_like(y))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tuple[Optional[Tensor], ...]:
        (y, scale, centre), rows = ctx.saved_tensors, tuple(range(grad.dim() - 1))
        need_y, need_scale, need_centre = ctx.needs_input_grad
        summed = grad.sum(rows, dtype=scale.dtype) if need_scale or need_centre else None
        return (torch.mul(grad, scale, out=torch.empty_like(grad)) if need_y else None,
                torch.addcmul((grad * y).sum(rows, dtype=scale.dtype), summed, centre, value=-1)
                if need_scale else None,
                torch.addcmul(summed, summed, scale, value=-1).to(centre.dtype) if need_centre else None)


def scale_about(y: Tensor, scale: Tensor, centre: Optional[Tensor]) -> Tensor:
    """scale (C) * (y - centre) + centre, (..., C) -> (..., C), in the precision of y: a product whose bias, ``centre``
    (C), is in y already and is not to be scaled. Formed in float32 where y is in half precision."""
    if centre is None:
        return scale_shift(y, scale)
    if _plain_ops():
        return scale_shift(y, scale, torch.addcmul(centre, centre, scale, value=-1))
    return _ScaleAbout.apply(y, scale, centre)
