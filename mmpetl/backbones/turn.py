# SPDX-License-Identifier: Apache-2.0
"""One thread at a time: what changes how a model runs is done by one thread, while no other runs the model.

Disabling methods or switching adapters rewires the one model that all threads share, so an overlap would give some
thread the outputs of another one's adapter. Contexts of several threads wait for each other; a model that runs, or is
run, beside a context of another thread is refused at once.
"""

import threading
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
from torch import nn

from ..sites import new_pass
from .base_dtype import OwnAutocast, needs_autocast


class Turn:
    """Who may change a model now, and which threads run it.

    Copies and unpickled ones begin anew, as the models do to which they belong.
    """

    def __init__(self) -> None:
        # Reentrant: a context inside a context of the same thread must not wait for itself.
        self._turn = threading.RLock()
        # Held for a moment only, never while the model runs.
        self._facts = threading.Lock()
        self._owner: Optional[int] = None
        self._depth = 0
        self._running: Dict[int, int] = {}
        #: Forward passes under an autocast of their own; a plain number, which a compiler can tell.
        self.own = 0
        self._casting: Dict[int, List[OwnAutocast]] = {}

    def __deepcopy__(self, memo: Any) -> 'Turn':
        return Turn()

    def __reduce__(self) -> Tuple[Any, Tuple]:
        return Turn, ()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within the context this thread alone changes and runs the model; other threads' contexts wait for its end.

        Raises:
            RuntimeError: If another thread runs the model now.
        """
        me = threading.get_ident()
        with self._turn:
            with self._facts:
                if any(thread != me for thread in self._running):
                    raise RuntimeError('another thread is running this model, so its adapter cannot be switched or '
                                       'disabled now: run it inside a context of its own (bank.using), or give each '
                                       'thread a copy of the model')
                self._owner, self._depth = me, self._depth + 1
            try:
                yield
            finally:
                with self._facts:
                    self._depth -= 1
                    self._owner = me if self._depth else None

    def begin(self) -> None:
        """This thread begins a forward pass.

        Raises:
            RuntimeError: If another thread has switched or disabled the model's adapter.
        """
        me = threading.get_ident()
        with self._facts:
            # The owner itself may run the model inside its context: that is what contexts are for.
            if self._owner not in (None, me):
                raise RuntimeError('another thread has switched or disabled the adapter of this model: run it inside a '
                                   'context of its own (bank.using), which waits, or give each thread a copy of the '
                                   'model')
            self._running[me] = self._running.get(me, 0) + 1

    def end(self) -> None:
        """This thread ends a forward pass, or did not begin it."""
        me = threading.get_ident()
        with self._facts:
            left = self._running.get(me, 0) - 1
            if left > 0:
                self._running[me] = left
            else:
                self._running.pop(me, None)

    def begin_precision(self, module: nn.Module) -> None:
        """Before a forward pass of ``module``: autocast, where its base is in half precision and nobody else put
        it under autocast."""
        own = OwnAutocast()
        self._casting.setdefault(threading.get_ident(), []).append(own)
        own.enter(module)
        with self._facts:
            self.own += own.entered is not None

    def end_precision(self, out: Any) -> Any:
        """After a forward pass, or one that failed before it began: its output (...)."""
        mine = self._casting.get(threading.get_ident())
        if not mine:
            return out
        last = mine.pop()
        with self._facts:
            self.own -= last.entered is not None
        return last.leave(out)


@torch.compiler.disable
def _begin_eagerly(module: nn.Module) -> None:
    module.petl.turn.begin_precision(module)


@torch.compiler.disable
def _end_eagerly(module: nn.Module, out: Any) -> Any:
    return module.petl.turn.end_precision(out)


def _begin(module: nn.Module, _: Any) -> None:
    if torch.compiler.is_compiling():  # a compiled graph has no threads to ask
        if needs_autocast(module):
            _begin_eagerly(module)
    else:
        module.petl.turn.begin_precision(module)
        module.petl.turn.begin()
        new_pass()


def _end(module: nn.Module, _: Any, out: Any) -> Any:
    if torch.compiler.is_compiling():
        return _end_eagerly(module, out) if module.petl.turn.own else None
    module.petl.turn.end()
    return module.petl.turn.end_precision(out)


def watch(backbone: nn.Module) -> None:
    """Let a backbone's forward passes be known to its turn. Torch hands the module to the hooks, so copies of a model
    watch themselves."""
    backbone.register_forward_pre_hook(_begin)
    # Also when the forward pass raised, else the model would count as running for ever.
    backbone.register_forward_hook(_end, always_call=True)
