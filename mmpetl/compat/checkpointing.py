# SPDX-License-Identifier: Apache-2.0
"""Gradient checkpointing that keeps the adapters' gradients."""

import difflib
import fnmatch
from functools import partial
from typing import Any, Dict, List, Sequence, Union

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_classes: Dict[Any, type] = {}


def _checkpointed(cls: Any) -> type:
    """Subclass of a module class whose forward is recomputed in the backward pass; one per class."""

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        run = partial(cls.forward, self, **kwargs)
        return checkpoint(run, *args, use_reentrant=False) if torch.is_grad_enabled() else run(*args)

    if cls not in _classes:
        members = {'forward': forward, '__module__': cls.__module__, '__doc__': cls.__doc__, '_checkpointed': True}
        _classes[cls] = type(cls.__name__, (cls,), members)
    return _classes[cls]


def nonreentrant_checkpointing(model: nn.Module, names: Union[str, Sequence[str]]) -> List[str]:
    """Recompute the activations of some submodules in the backward pass instead of keeping them.

    mmengine's own switch (``activation_checkpointing``) uses the reentrant form, which gives adapters over a frozen
    base no gradient at all, silently. This one specialises the instances' class, so that deep copies of the model
    checkpoint themselves.

    Args:
        model: The model, bare or in a wrapper such as DDP.
        names: Names of submodules, or glob patterns in which ``*`` stands for one part of a name:
            ``'backbone.layers.*'``.

    Returns:
        Names of the checkpointed submodules.

    Raises:
        ValueError: If a name matches no submodule.
    """
    from mmengine.model import is_model_wrapper
    if is_model_wrapper(model):
        model = model.module
    modules = dict(model.named_modules())
    chosen: List[str] = []
    for pattern in [names] if isinstance(names, str) else names:
        parts = pattern.split('.')
        found = [
            n for n in modules
            if n and len(n.split('.')) == len(parts) and all(map(fnmatch.fnmatchcase, n.split('.'), parts))
        ]
        if not found:
            near = difflib.get_close_matches(pattern, modules, n=3)
            hint = f'; near names: {", ".join(near)}' if near else '; name some, such as backbone.layers.*'
            raise ValueError(f'petl_checkpointing: no submodule is called {pattern!r}{hint}')
        chosen += [n for n in found if n not in chosen]
    for name in chosen:
        module = modules[name]
        if not getattr(module, '_checkpointed', False):
            module.__class__ = _checkpointed(type(module))
    return chosen
