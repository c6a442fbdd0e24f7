# SPDX-License-Identifier: Apache-2.0
"""Results that are cheap to compute again are not kept for the backward pass.

A function announces its result with :func:`recomputed`. Within :class:`Recomputing`, whatever autograd wants to save
passes through a hook, and a tensor that shares the memory of an announced result is replaced by a recipe: the function,
and the recipe's own arguments, saved by the same rule. The backward pass computes the result again, bit by bit the
same, and shares it among all who saved it.

Unlike ``torch.utils.checkpoint``, which repeats a whole region, only what was announced is repeated, so that no matrix
product of the base has to be. Under torch.compile nothing is done here, because its partitioner recomputes elementwise
results by itself.
"""

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

import torch
from torch import Tensor

#: What may be computed again: tables looked up from smaller ones; also elementwise results; also small products; also
#: the first product of the feed-forward network.
LOOK_UP, ELEMENTWISE, SMALL_PRODUCT, LARGE_PRODUCT = 1, 2, 3, 4
#: Memory settings of a backbone -> what is computed again. 'standard' leaves it to the methods, see
#: ``Method.recomputes``, and the blocks.
LEVELS = {'standard': 0, 'light': SMALL_PRODUCT, 'lightest': LARGE_PRODUCT}


class _Current(threading.local):
    scope: Optional['Recomputing'] = None


_current = _Current()


class _Kept(NamedTuple):
    """A tensor that is saved after all: as it is, or packed by the hook that was active outside."""
    packed: Any
    version: int
    outer: Optional[Callable[[Any], Tensor]]

    def load(self) -> Tensor:
        if self.outer is not None:
            return self.outer(self.packed)
        if self.packed._version != self.version:
            raise RuntimeError(
                'a tensor needed for the backward pass has been modified by an in-place operation after it was saved')
        return self.packed


class _View(NamedTuple):
    """A view of a result that is computed again."""
    recipe: '_Recipe'
    size: Tuple[int, ...]
    stride: Tuple[int, ...]
    offset: int

    def load(self) -> Tensor:
        return self.recipe.value().as_strided(self.size, self.stride, self.offset)


class _Recipe:
    """How to compute one result again.

    Args:
        function: Deterministic function of ``args``.
        args: Its arguments; tensors are saved when the first view of the result is.
        result: What it returned.
    """

    def __init__(self, function: Callable[..., Tensor], args: Iterable[Any], result: Tensor) -> None:
        self.function, self.args = function, list(args)
        self.layout = (result.stride(), result.storage_offset())
        self.device = result.device.type
        autocast = torch.amp.is_autocast_available(self.device) and torch.is_autocast_enabled(self.device)
        self.amp = torch.get_autocast_dtype(self.device) if autocast else None
        self.views = self.open = 0
        self.shared: Optional[Tensor] = None

    def save(self, pack: Callable[[Tensor], Any]) -> None:
        """Count one more view; with the first one, save the arguments."""
        if not self.views:
            self.args = [pack(a.detach()) if isinstance(a, Tensor) else a for a in self.args]
        self.views += 1
        self.open += 1

    def _context(self) -> AbstractContextManager:
        if self.amp is not None:
            return torch.autocast(self.device, self.amp)
        if torch.amp.is_autocast_available(self.device) and torch.is_autocast_enabled(self.device):
            return torch.autocast(self.device, enabled=False)
        return nullcontext()

    def value(self) -> Tensor:
        """The result; held until every view has been loaded once."""
        if self.shared is None:
            with torch.no_grad(), self._context():
                result = self.function(*(a.load() if isinstance(a, (_Kept, _View)) else a for a in self.args))
            if (result.stride(), result.storage_offset()) != self.layout:
                raise RuntimeError('a recomputed result has another memory layout than in the forward pass')
            self.shared = result
        result, self.open = self.shared, self.open - 1
        if self.open <= 0:  # a graph that is retained starts again
            self.shared, self.open = None, self.views
        return result


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


class Recomputing:
    """Context of a forward pass in which announced results are not saved.

    Outside hooks (checkpointing, offloading) get what is saved after all. Does nothing at level 0, without gradients,
    or where hooks are not allowed.

    Args:
        level: What may be computed again.
    """

    def __init__(self, level: int) -> None:
        self.level = level
        self.known: Dict[int, Tuple[Tensor, int, _Recipe]] = {}
        self.before: List[Any] = []
        self.outer_pack: Optional[Callable[[Tensor], Any]] = None
        self.outer_unpack: Optional[Callable[[Any], Tensor]] = None

    def __enter__(self) -> 'Recomputing':
        if not self.level or not torch.is_grad_enabled():
            return self
        # No public function shows the hooks outside, which get what is kept after all.
        outer = torch._C._autograd._top_saved_tensors_default_hooks(False)
        if outer is not None:
            self.outer_pack, self.outer_unpack = outer
        hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved.load())
        try:
            hooks.__enter__()
        except RuntimeError:  # disabled, as under torch.func
            return self
        self.before = [hooks, _current.scope]
        _current.scope = self
        return self

    def __exit__(self, *error: Any) -> None:
        if self.before:
            hooks, _current.scope = self.before
            hooks.__exit__(*error)
            self.before = []
        self.known = {}

    def announce(self, result: Tensor, function: Callable[..., Tensor], args: Tuple[Any, ...]) -> None:
        """Remember how ``result`` (...) was made, unless it is a view of an argument."""
        memory = _memory(result)
        if type(result) is Tensor and all(_memory(a) != memory for a in args if isinstance(a, Tensor)):
            # Holding the result keeps its memory from being handed to another tensor while it is looked up.
            self.known[memory] = (result, result._version, _Recipe(function, args, result))

    def knows(self, tensor: Tensor) -> bool:
        """Whether ``tensor`` (...) shares the memory of an announced result that has not been changed in place."""
        found = self.known.get(_memory(tensor))
        return found is not None and found[1] == tensor._version and found[0].dtype == tensor.dtype

    def _pack(self, tensor: Tensor) -> Any:
        if self.knows(tensor):
            recipe = self.known[_memory(tensor)][2]
            recipe.save(self._pack)
            return _View(recipe, tuple(tensor.shape), tensor.stride(), tensor.storage_offset())
        if self.outer_pack is not None:
            return _Kept(self.outer_pack(tensor), 0, self.outer_unpack)
        return _Kept(tensor, tensor._version, None)


def recomputed(function: Callable[..., Tensor], *args: Any, level: int = ELEMENTWISE) -> Tensor:
    """``function(*args)``, announced as a result that is computed again instead of kept.

    Args:
        function: Deterministic: the same arguments give the same result, in the same memory layout, in the backward
            pass.
        *args: Its arguments. Tensors that it takes from elsewhere (parameters of a module) must not change before the
          backward pass.
        level: How dear it is; below that level of the surrounding :class:`Recomputing` the result is kept as usual.

    Returns:
        The result, of any shape (...).
    """
    result = function(*args)
    if not torch.compiler.is_compiling():
        scope = _current.scope
        if scope is not None and scope.level >= level:
            scope.announce(result, function, args)
    return result


def is_recomputed(tensor: Tensor) -> bool:
    """Whether ``tensor`` (...) would be computed again instead of kept."""
    if torch.compiler.is_compiling():
        return False
    return _current.scope is not None and _current.scope.knows(tensor)
