# SPDX-License-Identifier: Apache-2.0
"""Early stopping that a resumed run does as an uncut one would."""

from typing import Any, Dict

from mmengine.hooks import EarlyStoppingHook as UpstreamEarlyStoppingHook

from ..registry import HOOKS

#: Entry of a checkpoint that holds what was seen so far.
SEEN = 'mmpetl_early_stopping'


@HOOKS.register_module()
class EarlyStoppingHook(UpstreamEarlyStoppingHook):
    """MMEngine's hook, with the same arguments, that says when and why it stops.

    Checkpoints hold the best score and how many validations have been worse since; a run that was stopped and is
    resumed trains on only with more patience, or another threshold.
    """

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add what was seen so far."""
        checkpoint[SEEN] = dict(best_score=self.best_score, wait_count=self.wait_count)

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Take it up in a resumed run."""
        seen = checkpoint.get(SEEN)
        if getattr(runner, '_resume', False) and isinstance(seen, dict):
            self.best_score, self.wait_count = float(seen['best_score']), int(seen['wait_count'])

    def before_train(self, runner: Any) -> None:
        """Train no further where the run was stopped."""
        if self.wait_count >= self.patience or self._reached():
            runner.train_loop.stop_training = True
            self._say(runner)

    def after_val_epoch(self, runner: Any, metrics: Dict[str, float]) -> None:
        """Decide whether to stop, and say so."""
        before = runner.train_loop.stop_training
        super().after_val_epoch(runner, metrics)
        if runner.train_loop.stop_training and not before:
            self._say(runner)

    def _reached(self) -> bool:
        limit = self.stopping_threshold
        return limit is not None and bool(self.rule_map[self.rule](self.best_score, limit))

    def _say(self, runner: Any) -> None:
        done = f'epoch {runner.epoch}' if getattr(runner.train_loop, 'run_epoch', None) else f'iteration {runner.iter}'
        if self._reached():
            why = f'{self.monitor} {self.best_score:.4g} reached stopping_threshold={self.stopping_threshold:g}'
        elif self.wait_count >= self.patience:
            why = (f'best {self.monitor} {self.best_score:.4g}, then {self.wait_count} validation(s) without a better '
                   f'one, patience={self.patience}')
        else:
            why = f'{self.monitor} is not a finite number'
        runner.logger.info(f'{"stopped":<10}after {done}: {why} (EarlyStoppingHook)')
