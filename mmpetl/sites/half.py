# SPDX-License-Identifier: Apache-2.0
"""Parameters under autocast: all of a method are cast at once, once per forward pass."""

from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: Forward pass, type, gradients, inference mode, and what mostly changes with a parameter's values.
_Key = Tuple[int, torch.dtype, bool, bool, int, int, bool]
_passes = [0]


def new_pass() -> None:
    """A backbone begins a forward pass: no copy from before is used in it."""
    _passes[0] += 1


class HalfCopies:
    """Copies of parameters in autocast's half precision, made together.

    Under autocast every product casts its weights, which for small adapters are as many kernels as the products. Here a
    method's weights are joined, cast once and split into views; gradients come back the same way. The values are those
    of autocast. Every forward pass makes them anew (:func:`new_pass`), because a weight can change without a trace
    (``p.data.copy_``). Where autocast is off, a compiler traces, or a weight is not a plain float32 parameter, the
    parameter itself is returned and nothing happens.
    """

    def __init__(self) -> None:
        self._wanted: List[nn.Parameter] = []
        self._copies: Dict[int, Tuple[_Key, Tensor]] = {}

    def __deepcopy__(self, memo: Dict[int, Any]) -> 'HalfCopies':
        return HalfCopies()

    def __reduce__(self) -> Any:
        return HalfCopies, ()

    def __call__(self, parameter: Optional[Tensor]) -> Any:
        """The parameter as a product reads it: a half-precision view of the same shape, or the parameter itself.

        Args:
            parameter: Of any shape; None is returned.
        """
        if torch.compiler.is_compiling() or type(parameter) is not nn.Parameter:
            return parameter
        kind = parameter.device.type
        if kind not in ('cpu', 'cuda') or parameter.dtype is not torch.float32 or not torch.is_autocast_enabled(kind):
            return parameter
        key = (_passes[0], torch.get_autocast_dtype(kind), torch.is_grad_enabled(), torch.is_inference_mode_enabled(),
               parameter._version, parameter.data_ptr(), parameter.requires_grad)
        found = self._copies.get(id(parameter))
        if found is None and not any(parameter is p for p in self._wanted):
            self._wanted.append(parameter)  # with the others from now on; until then with the same bits
            return parameter.to(key[1])
        if found is None or found[0] != key:
            found = self._make(key).get(id(parameter))
        return parameter if found is None else found[1]

    def _make(self, key: _Key) -> Dict[int, Tuple[_Key, Tensor]]:
        """Cast all wanted parameters of one device. Threads may do so at once: each gets what it made."""
        device = self._wanted[0].device
        chosen = [p for p in self._wanted if p.device == device and p.dtype is torch.float32]
        flat = torch.cat([p.flatten() for p in chosen]).to(key[1])
        views = flat.split([p.numel() for p in chosen])
        made = {id(p): ((*key[:4], p._version, p.data_ptr(), p.requires_grad), view.view(p.shape))
                for p, view in zip(chosen, views)}
        self._copies = made
        return made

    def linear(self, module: nn.Linear, x: Tensor) -> Tensor:
        """``module(x)``, (..., Cin) -> (..., Cout)."""
        return F.linear(x, self(module.weight), self(module.bias))
