# SPDX-License-Identifier: Apache-2.0
"""Parameters under autocast: all of a method are cast at once, once per forward pass."""

from contextlib import nullcontext
from itertools import accumulate
from typing import Any, ContextManager, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

#: Parameters that stand side by side in a copy.
_Group = Tuple[Tensor, ...]
#: Forward pass, type, gradients, inference mode, and what mostly changes with the values of a group.
_Key = Tuple[int, torch.dtype, bool, bool, Tuple[Any, ...]]
_passes = [0]


def new_pass() -> None:
    """A backbone begins a forward pass: no copy from before is used in it."""
    _passes[0] += 1


def autocast_dtype(x: Tensor) -> Optional[torch.dtype]:
    """The precision in which products read x (...) under autocast; None where autocast is off."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if kind in ('cpu', 'cuda') and torch.is_autocast_enabled(kind) else None


def as_given(x: Tensor) -> ContextManager[Any]:
    """Autocast off around operations whose tensors, on the device of x (...), have the types that are meant: a GPU's
    makes norms float32, by their lower names too, and casts what a sum of products promotes by itself."""
    return nullcontext() if autocast_dtype(x) is None else torch.autocast(x.device.type, enabled=False)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm of x (..., C) in the type that all have, where a GPU's autocast would make it float32; as autocast has
    it where types differ."""
    if not x.dtype is weight.dtype is bias.dtype:
        return F.layer_norm(x, x.shape[-1:], weight, bias, eps)
    with as_given(x):
        return torch.native_layer_norm(x, x.shape[-1:], weight, bias, eps)[0]


def wide(weight: Tensor) -> Tensor:
    """A weight (...) of the base as float32, or float64 where it is."""
    full = getattr(weight, 'full', None)  # 8-bit weights say what they mean
    if full is not None:
        weight = full()
    return weight.float() if weight.dtype in (torch.bfloat16, torch.float16) else weight


def cast_together(tensors: Sequence[Optional[Tensor]]) -> List[Optional[Tensor]]:
    """Activations (...) without gradients in autocast's precision, cast by one kernel; as they are where autocast is
    off or a compiler traces."""
    found = [t for t in tensors if t is not None]
    half = autocast_dtype(found[0]) if found else None
    if half is None or torch.compiler.is_compiling() or torch.jit.is_tracing() or any(t.requires_grad for t in found):
        return list(tensors)
    copies = [t if t is None or t.dtype is half else torch.empty_like(t, dtype=half) for t in tensors]
    pairs = [(c, t) for c, t in zip(copies, tensors) if c is not t]
    if pairs:
        with torch.no_grad():
            torch._foreach_copy_([c for c, _ in pairs], [t for _, t in pairs])
    return copies


def _half_of(parameter: Tensor, frozen: bool) -> Optional[torch.dtype]:
    """Autocast's half precision where a parameter is to be cast, else None."""
    buffer = frozen and type(parameter) is Tensor and not parameter.requires_grad
    if torch.compiler.is_compiling() or not (type(parameter) is nn.Parameter or buffer):
        return None
    return autocast_dtype(parameter) if parameter.dtype is torch.float32 else None


def _state(group: _Group) -> Tuple[Any, ...]:
    return tuple((p._version, p.data_ptr(), p.requires_grad) for p in group)


def _same(group: _Group, other: _Group) -> bool:
    return len(group) == len(other) and all(a is b for a, b in zip(group, other))


def _flat(group: _Group) -> Tensor:
    """All parameters in one row."""
    return torch.cat([p.flatten() for p in group]) if len(group) > 1 else group[0].flatten()


class _Together(torch.autograd.Function):
    """Groups of parameters in another type, each group in one row, by one kernel; and their gradients by one."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, counts: List[int], *parameters: Tensor) -> Tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.counts, ctx.shapes = counts, [p.shape for p in parameters]
        rows, parts = _rooms(parameters[0], dtype, counts, ctx.shapes)
        torch._foreach_copy_(parts, list(parameters))
        return tuple(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Optional[Tensor]) -> Tuple[Optional[Tensor], ...]:
        given = [grad for grad in grads if grad is not None]
        rows, parts = _rooms(given[0], torch.float32, ctx.counts, ctx.shapes)
        torch._foreach_copy_([row for row, grad in zip(rows, grads) if grad is not None], given)
        for row, grad in zip(rows, grads):
            if grad is None:
                row.zero_()
        return (None, None, *parts)


def _rooms(like: Tensor, dtype: torch.dtype, counts: List[int], shapes: List[torch.Size]) -> Tuple[List[Tensor], ...]:
    """Empty memory for groups of ``counts`` tensors: a row (...) per group, and its parts, which are the tensors."""
    sizes = [shape.numel() for shape in shapes]
    flat = like.new_empty(sum(sizes), dtype=dtype)
    ends = [0, *accumulate(counts)]
    rows = flat.split([sum(sizes[a:b]) for a, b in zip(ends, ends[1:])])
    return list(rows), [part.view(shape) for part, shape in zip(flat.split(sizes), shapes)]


class HalfCopies:
    """Copies of parameters in autocast's half precision, made together.

    Under autocast every product casts its weights, which for small adapters are as many kernels as the products. Here a
    method's weights are joined, cast once and split into views; gradients come back the same way. The values are those
    of autocast. Every forward pass makes them anew (:func:`new_pass`), because a weight can change without a trace
    (``p.data.copy_``). Where autocast is off, a compiler traces, or a weight is not a plain float32 parameter, the
    parameter itself is returned and nothing happens.
    """

    def __init__(self) -> None:
        self._wanted: List[_Group] = []
        self._copies: Dict[Tuple[int, ...], Tuple[_Key, Tensor]] = {}

    def __deepcopy__(self, memo: Dict[int, Any]) -> 'HalfCopies':
        return HalfCopies()

    def __reduce__(self) -> Any:
        return HalfCopies, ()

    def __call__(self, parameter: Optional[Tensor], frozen: bool = False) -> Any:
        """The parameter as a product reads it: a half-precision view of the same shape, or the parameter itself.

        Args:
            parameter: Of any shape (...); None is returned.
            frozen: Whether it may be a buffer that lives as long as its module.
        """
        dtype = None if parameter is None else _half_of(parameter, frozen)
        return parameter if dtype is None else self._copy((parameter, ), dtype).view(parameter.shape)

    def copies(self, parameter: Tensor) -> bool:
        """Whether a parameter (...) is handed out as a copy."""
        return _half_of(parameter, False) is not None

    def stack(self, *parameters: Tensor, frozen: bool = False) -> Tensor:
        """Parameters (...) of one shape as one tensor (count, ...), in half precision where :meth:`__call__` is."""
        dtypes = [_half_of(p, frozen) for p in parameters]
        if None in dtypes:
            return torch.stack(parameters)
        return self._copy(parameters, dtypes[0]).view(len(parameters), *parameters[0].shape)

    def _copy(self, group: '_Group', dtype: torch.dtype) -> Tensor:
        key = (_passes[0], dtype, torch.is_grad_enabled(), torch.is_inference_mode_enabled(), _state(group))
        name = tuple(map(id, group))
        found = self._copies.get(name)
        if found is None and not any(_same(group, g) for g in self._wanted):
            self._wanted.append(group)  # with the others from now on; until then with the same bits
            return _flat(group).to(dtype)
        if found is None or found[0] != key:
            found = self._make(key).get(name)
        return _flat(group).to(dtype) if found is None else found[1]

    def _make(self, key: _Key) -> Dict[Tuple[int, ...], Tuple[_Key, Tensor]]:
        """Cast all wanted parameters of one device. Threads may do so at once: each gets what it made."""
        device = self._wanted[0][0].device
        chosen = [g for g in self._wanted if all(p.device == device and p.dtype is torch.float32 for p in g)]
        views = _Together.apply(key[1], [len(g) for g in chosen], *(p for g in chosen for p in g))
        # What is frozen stands beside what is trained, and must get no gradient all the same.
        views = [v if any(p.requires_grad for p in g) else v.detach() for g, v in zip(chosen, views)]
        made = {tuple(map(id, g)): ((*key[:4], _state(g)), view) for g, view in zip(chosen, views)}
        self._copies = made
        return made

    def norm(self, module: nn.Module, x: Tensor) -> Tensor:
        """``module(x)``, (..., C) -> (..., C), for a layer norm in the precision of x where that is autocast's."""
        if autocast_dtype(x) is not x.dtype or not isinstance(module, nn.LayerNorm):
            return module(x)
        return layer_norm(x, self(module.weight), self(module.bias), module.eps)

    def linear(self, module: nn.Linear, x: Tensor) -> Tensor:
        """``module(x)``, (..., Cin) -> (..., Cout)."""
        weight, bias = self(module.weight), self(module.bias)
        return module(x) if weight is module.weight and bias is module.bias else F.linear(x, weight, bias)


class _AsTheyAre(HalfCopies):
    """Hands out the parameters themselves."""

    def __call__(self, parameter: Optional[Tensor], frozen: bool = False) -> Any:
        return parameter

    def copies(self, parameter: Tensor) -> bool:
        return False

    def stack(self, *parameters: Tensor, frozen: bool = False) -> Tensor:
        return torch.stack(parameters)


#: For a module that is used without its method.
AS_THEY_ARE = _AsTheyAre()
