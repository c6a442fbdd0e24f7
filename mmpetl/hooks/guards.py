# SPDX-License-Identifier: Apache-2.0
"""A run that does not do its work fails: a loss or weights that are no numbers, nothing that moves."""

import math
import os
from typing import Any, Dict, List, Optional

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from ..registry import HOOKS
from ..tuning import unwrap
from .data_guard import compare_data

#: Elements of each trainable tensor that are remembered, to see whether it moved.
SAMPLE = 4096
#: A tensor of which no value changed by more than this has not moved.
STILL = 1e-12


@HOOKS.register_module()
class RunGuardHook(Hook):
    """End a run that goes wrong, before its adapter is taken for a result.

    * Labels, class names and head that do not fit each other, before the first step.
    * A loss that is infinite or not a number; trained tensors that hold such values, before a checkpoint is written.
    * Not one trained tensor that differs from its start when the run is over: a rate of 0, or methods without effect.

    The adapter of the last validation is removed then; the best one and the checkpoints stay.

    Args:
        interval: Look at the loss every so many iterations, and at the end of each epoch (looking waits for the
            device).

    Raises:
        ValueError: Naming epoch, iteration and tensor.
    """

    priority = 'ABOVE_NORMAL'  # before the hooks that write what it would refuse

    def __init__(self, interval: int = 10) -> None:
        if isinstance(interval, bool) or not isinstance(interval, int) or interval < 1:
            raise ValueError(f'RunGuardHook: interval must be a number of iterations from 1 upwards, got {interval!r}')
        self.interval = interval
        self._start: Dict[str, torch.Tensor] = {}
        self._iterations = 0
        self._rate = 0.

    def before_train(self, runner: Any) -> None:
        compare_data(runner)
        self._iterations, self._rate = 0, 0.
        self._start = {} if _sharded(runner) else {n: _sample(p).clone() for n, p in _trained(runner).items()}

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if hasattr(runner.optim_wrapper, 'param_groups'):
            self._rate = max(self._rate, *(group['lr'] for group in runner.optim_wrapper.param_groups))

    def after_train_iter(self,
                         runner: Any,
                         batch_idx: int,
                         data_batch: Any = None,
                         outputs: Optional[dict] = None) -> None:
        self._iterations += 1
        if not outputs or not (self.every_n_inner_iters(batch_idx, self.interval) or self.is_last_train_iter(runner)
                               or batch_idx + 1 == len(runner.train_dataloader)):
            return
        loss = outputs.get('loss')
        if loss is not None and not math.isfinite(float(loss.detach())):
            self._fail(runner, f'the loss became {float(loss.detach())} in epoch {runner.epoch + 1}, iteration '
                       f'{batch_idx + 1}: lower the learning rate or the weight decay')

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        self.check_numbers(runner)

    def before_val_epoch(self, runner: Any) -> None:
        if self._iterations:
            self.check_numbers(runner)

    def check_numbers(self, runner: Any) -> None:
        """Look for values that are no numbers among what was trained.

        Raises:
            ValueError: Naming the tensor.
        """
        if _sharded(runner):
            return
        named = _trained(runner)
        finite = torch.stack([torch.isfinite(p.detach()).all() for p in named.values()]).tolist() if named else []
        odd = [name for name, fine in zip(named, finite) if not fine]
        if odd:
            self._fail(runner, f'{odd[0]} ({len(odd)} of {len(named)} trained tensors) holds values that are infinite '
                       f'or not numbers after epoch {runner.epoch + 1}: lower the learning rate, or look at scale, '
                       'alpha and drop_rate of the methods')

    def moved(self, runner: Any) -> bool:
        """Whether anything that trains differs from what it was when the run began, or was resumed; true where nobody
        can tell, and before the first iteration."""
        now = _trained(runner)
        if not self._iterations or not self._start or set(now) != set(self._start):
            return True
        # another shape: prompts were pruned
        return any(p.shape != self._start[n].shape or bool(((p - self._start[n]).abs() > STILL).any())
                   for n, p in ((n, _sample(p)) for n, p in now.items()))

    def after_train(self, runner: Any) -> None:
        if not self.moved(runner):
            self._fail(runner, f'nothing moved in {self._iterations} iteration(s): all {len(self._start)} trained '
                       f'tensors are what they were at the start (largest learning rate {self._rate:g}): look at '
                       'optim_wrapper.optimizer.lr and param_scheduler, whose warm-up may be longer than the run, and '
                       'at scale, alpha and drop_rate of the methods')
        self._start = {}

    def _fail(self, runner: Any, message: str) -> None:
        withdraw(runner, 'adapter.safetensors')
        raise ValueError(message)


@HOOKS.register_module()
class InvalidLossHook(RunGuardHook):
    """The older name of :class:`RunGuardHook`."""


def withdraw(runner: Any, *names: str) -> None:
    """Remove files of a run that failed from its folder, before they are taken for a result."""
    for path in (os.path.join(runner.work_dir, name) for name in names):
        if is_main_process() and os.path.exists(path):
            os.unlink(path)


def _trained(runner: Any) -> Dict[str, torch.Tensor]:
    return {n: p for n, p in unwrap(runner.model).named_parameters() if p.requires_grad}


def _sample(parameter: torch.Tensor) -> torch.Tensor:
    """Evenly spaced elements of a tensor, at most :data:`SAMPLE`."""
    flat = parameter.detach().flatten()
    return flat[::max(1, -(-flat.numel() // SAMPLE))]


def _sharded(runner: Any) -> bool:
    return hasattr(getattr(runner, 'strategy', None), 'gathered')


def guard_of(runner: Any) -> Optional[RunGuardHook]:
    """The guard of a run, if it has one."""
    found: List[Any] = [hook for hook in runner.hooks if isinstance(hook, RunGuardHook)]
    return found[0] if found else None
