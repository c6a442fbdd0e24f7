# SPDX-License-Identifier: Apache-2.0
"""A model that is refused something stays the model that it was."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """If the context is left by an error, the model has the classes, modules, hooks, attributes and ``requires_grad``
    that it had when the context began. Values of tensors are not looked after: check before they are written.

    Args:
        model: Any model; what may be attached in the context is taken off again.
    """
    modules = [(m, m.__class__, dict(m.__dict__), [(v, v.copy()) for v in vars(m).values() if isinstance(v, dict)])
               for m in model.modules()]
    trains = [(p, p.requires_grad) for p in model.parameters()]
    try:
        yield
    except BaseException:
        for module, cls, attributes, tables in modules:
            module.__class__ = cls
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for table, entries in tables:  # in place: handles of hooks hold their tables
                table.clear()
                table.update(entries)
        for parameter, flag in trains:
            parameter.requires_grad = flag
        raise
