# SPDX-License-Identifier: Apache-2.0
"""Optimizer constructor that holds what trains, and nothing else; mixed precision without a GPU."""

import logging
from contextlib import contextmanager
from typing import Any, Iterator, List, Optional, Union

import torch
from mmengine.logging import MMLogger, print_log
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.runner.amp import autocast
from torch import nn

from ..registry import OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS


class _Trainable(nn.Module):
    """View of a model that lists trainable parameters only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = (model, )  # in a tuple, or torch would make it a part, with its frozen parameters

    def parameters(self, recurse: bool = True):  # type: ignore[no-untyped-def]
        return (p for p in self._model[0].parameters(recurse) if p.requires_grad)


def _check_rates(wrapper: OptimWrapper) -> None:
    """See that every group has the learning rate that schedules multiply and logs show.

    Raises:
        ValueError: If an optimizer chooses its rate itself.
    """
    for group in wrapper.optimizer.param_groups:
        if group.get('lr') is None:
            own = ', relative_step=False' if group.get('relative_step') else ''
            raise ValueError(f'optim_wrapper.optimizer ({type(wrapper.optimizer).__name__}) has lr={group.get("lr")}: '
                             f'schedules and logs of MMEngine need a number, give lr=1e-3{own}')


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class TrainableOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's constructor over trainable tensors only; ``paramwise_cfg`` (weight-decay and learning-rate
    multipliers) works as usual.

    Without ``paramwise_cfg`` MMEngine hands frozen parameters to the optimizer, with it it prints one warning per
    frozen tensor.

    Raises:
        ValueError: If nothing trains, or the optimizer has no learning rate.
    """

    def __call__(self, model: nn.Module) -> OptimWrapper:
        if hasattr(model, 'module'):
            model = model.module
        trainable = [p for p in model.parameters() if p.requires_grad]
        if not trainable:
            raise ValueError('nothing trains: add a method to petl, a pattern to tune, or a head')
        frozen = sum(1 for _ in model.parameters()) - len(trainable)
        print_log(f'Optimizer: {len(trainable)} trainable tensors, {sum(p.numel() for p in trainable):,} numbers; '
                  f'{frozen} frozen tensors are left out', 'current')
        for key, options in ((self.paramwise_cfg or {}).get('custom_keys') or {}).items():
            if 'lr_mult' in options and not any(key in name for name, _ in model.named_parameters()):
                print_log(f'optim_wrapper.paramwise_cfg.custom_keys: {key!r} is in no name of a parameter, its lr_mult '
                          'has no effect', 'current', logging.WARNING)
        wrapper = super().__call__(model if self.paramwise_cfg else _Trainable(model))
        _check_rates(wrapper)
        return wrapper

    def add_params(self,
                   params: List[dict],
                   module: nn.Module,
                   prefix: str = '',
                   is_dcn_module: Optional[Union[int, float]] = None) -> None:
        # Upstream's own recursion, without its warning per frozen tensor and its line per option.
        logger = MMLogger.get_current_instance()
        muted, logger.disabled = logger.disabled, True
        try:
            super().add_params(params, module, prefix=prefix, is_dcn_module=is_dcn_module)
        finally:
            logger.disabled = muted


@OPTIM_WRAPPERS.register_module()
class CpuAmpOptimWrapper(OptimWrapper):
    """Mixed precision on the CPU, where MMEngine's ``AmpOptimWrapper`` does not run.

    Matrix products run in bfloat16, parameters and their gradients stay float32. bfloat16 has the range of float32, so
    the loss needs no scaling.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[Any]:
        """The context of a forward pass."""
        with super().optim_context(model), autocast(device_type='cpu', dtype=torch.bfloat16):
            yield
