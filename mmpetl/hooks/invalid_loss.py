"""Stop a run whose loss is no longer a number."""

import math
from typing import Any, Optional

from mmengine.hooks import Hook

from ..registry import HOOKS


@HOOKS.register_module()
class InvalidLossHook(Hook):
    """Raise as soon as the loss is infinite or not a number: what follows would only waste time and end in a
    meaningless score.

    Args:
        interval: Look every so many iterations, and at the end of each epoch (looking waits for the device).

    Raises:
        ValueError: Naming the epoch and the iteration.
    """

    def __init__(self, interval: int = 10) -> None:
        self.interval = interval

    def after_train_iter(self,
                         runner: Any,
                         batch_idx: int,
                         data_batch: Any = None,
                         outputs: Optional[dict] = None) -> None:
        if not outputs or not (self.every_n_inner_iters(batch_idx, self.interval) or self.is_last_train_iter(runner)
                               or batch_idx + 1 == len(runner.train_dataloader)):
            return
        loss = float(outputs['loss'].detach())
        if not math.isfinite(loss):
            raise ValueError(
                f'the loss became {loss} in epoch {runner.epoch + 1}, iteration {batch_idx + 1}: lower the learning '
                f'rate or '
                'the weight decay')
