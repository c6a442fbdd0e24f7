# SPDX-License-Identifier: Apache-2.0
"""``cuda_graph=True`` for runs: the backbone's forward and backward pass are captured as CUDA graphs and replayed.

A replay starts all kernels of a pass at once, where Python would start them one by one. Not run on a GPU yet: on a CPU
only the decisions are tested, with a stand-in for torch's graphs.
"""

import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Callable, Optional

import torch
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..tuning import find_backbone

#: Training passes of one shape before the capture, in which libraries choose their kernels.
WARM_UP = 3


def _say(line: str) -> None:
    print_log(line, 'current')  # not the logger's own method: averages of weights copy the model, loggers refuse that


def _nothing() -> None:
    """As a weak reference to what is gone."""


class _Holder(nn.Module):
    """Calls the backbone. Torch captures only modules without hooks, which those inside may have."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Any:
        """(B, C, ...) -> what the backbone gives."""
        return self.backbone(x)


def _keep_stream(device: torch.device) -> AbstractContextManager[Any]:
    """The stream of now is that of afterwards: a capture that fails may leave its own behind."""
    return torch.cuda.stream(torch.cuda.current_stream(device)) if device.type == 'cuda' else nullcontext()


class GraphedForward:
    """Stands in for the ``forward`` of a backbone: counts, captures, replays; else runs the backbone as it is.

    A replay overwrites what the one before it kept: a second pass before the first one's backward pass runs as it is.
    A copy, by ``deepcopy`` or pickle, has no graph, which would read the weights of the original; it captures anew.

    Args:
        backbone: Attached backbone.
        say: Takes one line when the backbone is captured, or runs without a graph although it was asked for.
        capture: Module and arguments -> callable, as ``torch.cuda.make_graphed_callables``.
    """

    def __init__(self, backbone: nn.Module, say: Callable[[str], None], capture: Callable[..., Any]) -> None:
        self._backbone, self._say, self._capture = backbone, say, capture
        self._plain: Callable[..., Any] = backbone.forward
        self._graph: Optional[Callable[[Tensor], Any]] = None
        self._form: Any = None
        self._seen = 0
        self._over = self._inside = False
        self._waiting: Callable[[], Any] = _nothing  # the output of a replay whose backward pass is still to come

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self), _graph=None, _form=None, _seen=0, _waiting=_nothing)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        fits = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
        if self._over or self._inside or not fits or not self._backbone.training or not torch.is_grad_enabled():
            return self._plain(*args, **kwargs)
        x = args[0]
        kind = x.device.type
        half = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        form = (tuple(x.shape), x.dtype, x.device, half)
        if self._graph is None:
            self._seen = self._seen + 1 if form == self._form else 1
            self._form = form
            if self._seen <= WARM_UP:
                return self._plain(x)
            self._make(x)
        if self._graph is None or form != self._form or self._waiting() is not None:
            return self._plain(x)  # the last batch of an epoch may be shorter: the graph is kept for the others
        found = self._graph(x)
        for output in (leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor) and leaf.requires_grad):
            self._waiting = weakref.ref(output)
            output.register_hook(self._is_back)
        return found

    def _is_back(self, gradient: Tensor) -> None:
        self._waiting = _nothing

    def _make(self, x: Tensor) -> None:
        self._inside = True
        kind, half = x.device.type, self._form[-1]
        try:
            # A cache of casts would be filled in the capture and read when the graph's memory holds something else.
            cast = torch.autocast(kind, dtype=half, enabled=half is not None, cache_enabled=False)
            with _keep_stream(x.device), cast:
                self._graph = self._capture(_Holder(self._backbone), (x.detach().clone(), ), allow_unused_input=True)
            self._say(f'cuda_graph: the backbone is captured for inputs of shape {tuple(x.shape)}')
        except (RuntimeError, AssertionError) as error:  # a copy to the host, a size that depends on values
            self._over = True
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self._say(f'cuda_graph: the run goes on without, because the capture failed: {first}')
        finally:
            self._inside = False


def why_not(runner: Any) -> Optional[str]:
    """What keeps a run from graphs, before it begins; None: nothing known."""
    cfg = runner.cfg
    wrapper = cfg.get('optim_wrapper') or {}
    hooks = [str(hook.get('type')) for hook in cfg.get('custom_hooks') or [] if isinstance(hook, dict)]
    checks = (
        (not torch.cuda.is_available(), 'there is no GPU'),
        (cfg.get('launcher', 'none') != 'none', 'gradients of several processes are reduced while they are computed'),
        (bool(cfg.get('compile')), "compile=True captures in its own way, with compile=dict(mode='reduce-overhead')"),
        (wrapper.get('accumulative_counts', 1) > 1, 'a replay overwrites the gradients that are accumulated'),
        (any('FeatureCacheHook' in name for name in hooks), 'the feature cache stands in for the backbone'),
    )
    return next((why for holds, why in checks if holds), None)


def graph_backbone_of(runner: Any) -> None:
    """Let a run whose config says ``cuda_graph=True`` capture its backbone; where it cannot, one line says why.

    Args:
        runner: MMEngine's ``Runner``, or another, whose model is built later and stays as it is.
    """
    if not runner.cfg.get('cuda_graph'):
        return
    why = why_not(runner)
    if why is None and not isinstance(runner.model, nn.Module):
        why = f'{type(runner).__name__} builds its model later'
    if why is not None:
        runner.logger.warning(f'cuda_graph: the run goes on without, because {why}')
        return
    backbone = find_backbone(runner.model)[0]
    backbone.forward = GraphedForward(backbone, _say, torch.cuda.make_graphed_callables)
