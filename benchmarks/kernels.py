"""Kernels of a training step, counted on any machine: what the time of a step on a GPU follows at these sizes.

A kernel is a dispatched operation that is no view and moves or makes numbers; casts are those that only change the
type; a synchronisation hands a number to Python or makes a size depend on values. Counted under bf16 autocast, forward
and backward, for the sizes of tests/cases.py, which has as many operations per block as the real sizes.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Optional

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
CASTS = {_aten._to_copy.default}
SYNCS = {_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.masked_select.default, _aten.item.default,
         _aten.is_nonzero.default, _aten.unique_dim.default, _aten._unique2.default, _aten.equal.default}
#: Dispatched, but nothing runs: memory without contents, and wrappers.
FREE = {_aten.empty.memory_format, _aten.empty_like.default, _aten.empty_strided.default, _aten.new_empty.default,
        _aten.new_empty_strided.default, _aten.detach.default, _aten.alias.default, _aten._unsafe_view.default,
        _aten.lift_fresh.default, _aten.resize_.default, _aten.set_.source_Storage_storage_offset}


@dataclass
class Kernels:
    """Counts of one step.

    Attributes:
        forward: Kernels of the forward pass, casts included.
        backward: Kernels of the backward pass, casts included.
        casts: Casts of both.
        syncs: Synchronisations of both.
        by_name: Kernels of both by the operation's name.
    """
    forward: int = 0
    backward: int = 0
    casts: int = 0
    syncs: int = 0
    by_name: Counter = field(default_factory=Counter)

    @property
    def total(self) -> int:
        """Kernels of the step."""
        return self.forward + self.backward


def _views(func: Any) -> bool:
    """Whether all results of an operation are views of its arguments."""
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


class _Counting(TorchDispatchMode):
    """Counts what is dispatched below autograd and autocast."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter = Counter()
        self.casts = self.syncs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Optional[Dict[str, Any]] = None) -> Any:
        if func in SYNCS:
            self.syncs += 1
        elif func not in FREE and not _views(func):
            self.names[str(func).removeprefix('aten.')] += 1
            self.casts += func in CASTS
        return func(*args, **(kwargs or {}))


def count(step: Callable[[], Tensor]) -> Kernels:
    """Kernels of ``step()``, which gives a scalar loss, and of its backward pass."""
    with _Counting() as counting:
        loss = step()
        forward = sum(counting.names.values())
        if loss.requires_grad:
            loss.backward()
    names = counting.names
    return Kernels(forward, sum(names.values()) - forward, counting.casts, counting.syncs, names)


def of_model(model: nn.Module, x: Tensor, last: Callable[[Any], Tensor], half: bool = True) -> Kernels:
    """Kernels of one training step of a backbone under bf16 autocast; the second step is counted, when nothing is new.

    Args:
        model: In train mode.
        x: Input.
        last: Output -> feature.
        half: False counts in float32.
    """

    def step() -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            return last(model(x)).float().sum()

    loss = step()
    if loss.requires_grad:
        loss.backward()
    model.zero_grad(set_to_none=True)
    found = count(step)
    model.zero_grad(set_to_none=True)
    return found
