# SPDX-License-Identifier: Apache-2.0
"""AdaLoRA's training: singular vectors are held orthonormal, ranks go where the loss feels them."""

from typing import Any, Callable, List, Mapping, Optional, Union

import torch
from mmengine.hooks import EMAHook, Hook
from mmengine.optim import OptimWrapper

from ..registry import HOOKS
from ..tuning import find_backbone, unwrap

STATE = 'mmpetl_adalora'
FORMS = ('paper', 'released')


@HOOKS.register_module()
class AdaLoRAHook(Hook):
    """Train ``dict(type='AdaLoRA')`` as published.

    The penalty on singular vectors joins the losses. After every step of the optimizer the importance of each singular
    value is updated, and in the phases below those that matter least become zero. When the run is over they are
    removed, so that the adapter file holds what is left.

    Args:
        target_rank: Singular values that an op keeps in the end, on average; None: two thirds of those at the start.
        warm_up: Steps in which nothing is taken away; a number below 1 is a share of all steps.
        final: Last steps, in which the choice is fixed; as ``warm_up``.
        interval: Steps from one choice to the next.
        beta1: Decay of the importance.
        beta2: Decay of its uncertainty.
        penalty: Weight of the penalty on singular vectors.
        form: 'released': the mean of norms, for which published weights of the penalty were chosen; 'paper': the sum of
            squared norms.

    Raises:
        ValueError: If the model has no AdaLoRA, the phases do not fit into the run, the optimizer or the way of
            training has no gradients to look at, or an option is out of range.
    """

    # Before the hook that writes the adapter when the run is over.
    priority = 'LOW'

    def __init__(self,
                 target_rank: Optional[int] = None,
                 warm_up: Union[int, float] = 0.1,
                 final: Union[int, float] = 0.3,
                 interval: int = 1,
                 beta1: float = 0.85,
                 beta2: float = 0.85,
                 penalty: float = 0.5,
                 form: str = 'released') -> None:
        if form not in FORMS:
            raise ValueError(f'AdaLoRAHook: form={form!r}: choose from {", ".join(FORMS)}')
        if not penalty >= 0:
            raise ValueError(f'AdaLoRAHook: penalty must be >= 0, got {penalty!r}')
        self.target_rank, self.phases, self.interval = target_rank, (warm_up, final), interval
        self.betas, self.penalty, self.form = (beta1, beta2), penalty, form
        self.allocators: List[Any] = []
        self._step = 0
        self._resumed: Mapping[str, Any] = {}
        self._handle: Optional[Any] = None

    def before_train(self, runner: Any) -> None:
        """Find the methods, join the losses, listen to the optimizer."""
        wrapper = runner.optim_wrapper
        if not isinstance(wrapper, OptimWrapper) or hasattr(getattr(runner, 'strategy', None), 'gathered'):
            raise ValueError('AdaLoRAHook: looks at whole gradients after each step of one optimizer, which '
                             f'{type(wrapper).__name__} of {type(runner).__name__} does not show: train it without '
                             'sharding and with one optimizer')
        model = unwrap(runner.model)
        methods = [m for m in find_backbone(model)[0].petl.values() if hasattr(m, 'allocator')]
        if not methods:
            raise ValueError("AdaLoRAHook: model.backbone.petl has no dict(type='AdaLoRA')")
        steps = -(-runner.max_iters // getattr(wrapper, '_accumulative_counts', 1))
        warm_up, final = (int(n if n >= 1 else n * steps) for n in self.phases)
        self.allocators = [m.allocator(self.target_rank, steps, warm_up, final, self.interval, *self.betas)
                           for m in methods]
        self._step = int(self._resumed.get('step', 0))
        for allocator, state in zip(self.allocators, self._resumed.get('allocators', ())):
            allocator.load(state)
        model.parse_losses = self._with_penalty(model.parse_losses, methods)
        # Behind the step itself: gradients are still there, unscaled, and a step that was skipped does not count.
        self._handle = wrapper.optimizer.register_step_post_hook(self._stepped)

    def _with_penalty(self, parse: Callable[..., Any], methods: List[Any]) -> Callable[..., Any]:

        def parse_losses(losses: Mapping[str, Any]) -> Any:
            off = torch.stack([method.orthogonality(self.form) for method in methods]).sum()
            return parse({**losses, 'loss_orthogonality': self.penalty * off})

        return parse_losses

    def _stepped(self, *_: Any) -> None:
        self._step += 1
        for allocator in self.allocators:
            allocator.step(self._step)

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        checkpoint[STATE] = dict(step=self._step, allocators=[a.state() for a in self.allocators])

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        if getattr(runner, '_resume', False):
            self._resumed = checkpoint.get(STATE) or {}

    def after_train(self, runner: Any) -> None:
        """Remove what was taken away."""
        if self._handle is not None:
            self._handle.remove()
            del unwrap(runner.model).parse_losses
        averaged = any(isinstance(hook, EMAHook) for hook in runner.hooks)
        for allocator in self.allocators:
            ranks = allocator.finish(prune=not averaged)
            text = ', '.join(f'{name} {rank}' for name, rank in ranks.items())
            left = 'chosen, none removed, as averages of weights hold values from before' if averaged else 'left'
            runner.logger.info(f'AdaLoRA: {sum(ranks.values())} singular values are {left}: {text}')
        self.allocators, self._handle = [], None
