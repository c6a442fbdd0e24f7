# SPDX-License-Identifier: Apache-2.0
"""Audit of the first iteration: what should train received a gradient, what should not is untouched."""

import re
from typing import Any, Dict, List, Optional, Sequence, Union

import torch
from mmengine.hooks import Hook
from torch import nn

from ..registry import HOOKS
from ..tuning import unwrap
from .guards import withdraw


@HOOKS.register_module()
class GradientAuditHook(Hook):
    """Check the first training iteration, then get out of the way.

    A trainable tensor without gradient means that a method was attached but never runs; a frozen one that changed means
    that something else trains the base; a method whose gradients are all zero for some iterations has no effect. All
    are silent in the libraries below.

    Args:
        allow: Parts of names of trainable tensors that may stay without gradient.
        patience: Iterations in which at least one gradient of every method must differ from zero. One is too few: a
            head that starts at zero sends none in the first.

    Raises:
        RuntimeError: After the first iteration, and names the tensors; or after ``patience`` of them, or at the end of
            a shorter run, and names the method.
    """

    priority = 'VERY_LOW'

    def __init__(self, allow: Sequence[str] = (), patience: int = 10) -> None:
        self.allow, self.patience = tuple(allow), patience
        self._silent: Dict[str, List[torch.Tensor]] = {}
        self._seen = 0
        self._watching: List[Any] = []
        self._handles: List[Any] = []
        self._received: Dict[str, bool] = {}
        self._versions: Dict[str, int] = {}
        self._done = False

    def before_train_iter(self,
                          runner: Any,
                          batch_idx: int,
                          data_batch: Optional[Union[dict, tuple, list]] = None) -> None:
        if self._done or self._handles or not isinstance(runner.model, nn.Module):
            return
        if hasattr(getattr(runner, 'strategy', None), 'gathered'):
            runner.logger.info('Audit: left out, since FSDP gives gradients to its own flat tensors')
            self._done = True
            return
        for name, parameter in unwrap(runner.model).named_parameters():
            if parameter.requires_grad:
                self._received[name] = False
                self._handles.append(parameter.register_post_accumulate_grad_hook(self._noting(name)))
                method = re.match(r'(?:backbone\.)?petl\.([^.]+)\.', name)
                if method and parameter.numel() and not any(part in name for part in self.allow):
                    self._silent.setdefault(method[1], [])
                    self._watching.append((method[1], parameter.register_post_accumulate_grad_hook(
                        self._summing(method[1]))))
            else:
                self._versions[name] = parameter._version  # torch counts every change in place

    def _noting(self, name: str) -> Any:

        def note(parameter: torch.Tensor) -> None:
            self._received[name] = True

        return note

    def _summing(self, method: str) -> Any:

        def note(parameter: torch.Tensor) -> None:
            if method in self._silent and parameter.grad is not None:
                self._silent[method].append(torch.count_nonzero(parameter.grad))

        return note

    def _listen(self, runner: Any, last: bool = False) -> None:
        """Strike off the methods that received a gradient; refuse those that did not for too long."""
        if not self._silent:
            return
        self._seen += not last
        # Counts are added up on the device: one number comes to the host, and only until all methods were heard.
        for method in [m for m, counts in self._silent.items() if counts and int(torch.stack(counts).sum())]:
            del self._silent[method]
        if self._silent and (last or self._seen >= self.patience):
            names, self._silent = sorted(self._silent), {}
            withdraw(runner, 'adapter.safetensors', 'best_adapter.safetensors')
            raise RuntimeError(f'petl: {", ".join(names)} received only zero gradients in {self._seen} iteration(s): '
                               'the method has no effect; look at its scale, alpha and drop_rate')
        if not self._silent:
            for _, handle in self._watching:
                handle.remove()
            self._watching = []

    def after_train(self, runner: Any) -> None:
        if self._seen:
            self._listen(runner, last=True)

    def after_train_iter(self,
                         runner: Any,
                         batch_idx: int,
                         data_batch: Optional[Union[dict, tuple, list]] = None,
                         outputs: Optional[dict] = None) -> None:
        self._listen(runner)
        if self._done or not self._handles:
            return
        self._done = True
        for handle in self._handles:
            handle.remove()
        self._handles = []
        without = [n for n, seen in self._received.items() if not seen and not any(part in n for part in self.allow)]
        if without:
            raise RuntimeError(
                f'{len(without)} trainable tensors received no gradient in the first iteration: {_some(without)}; '
                'the method is attached but does not run, or the tensor should not train '
                '(GradientAuditHook allow=[...] accepts it)')
        frozen = dict(unwrap(runner.model).named_parameters())
        changed = [
            n for n, version in self._versions.items() if frozen[n]._version != version or frozen[n].grad is not None
        ]
        if changed:
            raise RuntimeError(f'{len(changed)} frozen tensors were changed by the first iteration: {_some(changed)}')
        runner.logger.info(f'Audit: {len(self._received)} trainable tensors received a gradient, '
                           f'{len(self._versions)} frozen ones stayed as they were')


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')
