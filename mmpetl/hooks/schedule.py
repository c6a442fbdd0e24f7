# SPDX-License-Identifier: Apache-2.0
"""A resumed run follows the learning rates of its config, not those that its checkpoint remembers."""

import copy
import json
import warnings
from typing import Any, Dict, List, Mapping

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict

from ..registry import HOOKS
from ..weights.guards import parse_json

#: Entry of a checkpoint that says with which schedule it was trained.
SCHEDULE = 'mmpetl_schedule'


def _leaves(value: Any, prefix: str = '') -> Dict[str, Any]:
    """Dotted name -> value of everything in a config that is neither dict nor list."""
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, (list, tuple)):
        items = list(enumerate(value))
    else:
        return {prefix: value if isinstance(value, (bool, int, float, str, type(None))) else str(value)}
    return {k: v for key, child in items for k, v in _leaves(child, f'{prefix}.{key}' if prefix else str(key)).items()}


def schedule_of(runner: Any) -> Dict[str, Any]:
    """What decides the rates of a run: dotted config key -> value."""
    cfg, found = runner.cfg, {}
    for key in ('optim_wrapper', 'param_scheduler', 'auto_scale_lr'):
        value = cfg.get(key)
        if key == 'auto_scale_lr' and not (value or {}).get('enable'):
            continue
        found.update(_leaves(value, key))
    loader = cfg.get('train_dataloader') or {}
    found['train_dataloader.batch_size'] = loader.get('batch_size') if isinstance(loader, Mapping) else None
    found['processes'] = get_world_size()
    for key in ('max_epochs', 'max_iters'):
        planned = (cfg.get('train_cfg') or {}).get(key)
        if planned is not None:
            found[f'train_cfg.{key}'] = planned
    return found


@HOOKS.register_module()
class ScheduleHook(Hook):
    """Let another rate, weight decay, schedule or number of epochs take effect when a run is resumed.

    MMEngine restores rates and schedules from the checkpoint, whatever the config says. Where the two differ, the
    config's schedule is run through from its beginning to where the run stands, without training; the moments of the
    optimizer are kept. Where they are the same, nothing is done.

    Raises:
        ValueError: If the difference cannot take effect: another optimizer, or a schedule that follows the metrics.
    """

    priority = 'VERY_HIGH'

    def __init__(self) -> None:
        self._groups: List[Dict[str, Any]] = []
        self._fresh: List[Dict[str, Any]] = []
        self._before: Dict[str, Any] = {}

    def before_run(self, runner: Any) -> None:
        """Remember the config's own values, before a checkpoint is loaded over them."""
        wrapper = getattr(runner, 'optim_wrapper', None)
        if getattr(runner, '_resume', False) and hasattr(wrapper, 'param_groups'):
            self._groups = [copy.deepcopy({k: v for k, v in g.items() if k != 'params'}) for g in wrapper.param_groups]
            schedulers = runner.param_schedulers
            self._fresh = [copy.deepcopy(s.state_dict()) for s in schedulers] if isinstance(schedulers, list) else []

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        checkpoint[SCHEDULE] = json.dumps(schedule_of(runner))

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        if not getattr(runner, '_resume', False) or not isinstance(checkpoint.get(SCHEDULE), str):
            return
        found = parse_json(checkpoint[SCHEDULE], finite=False)
        self._before = found if isinstance(found, dict) else {}
        key = 'optim_wrapper.optimizer.type'
        before, now = self._before.get(key), schedule_of(runner).get(key)
        if before != now:
            raise ValueError(f'{key} is {now} and was {before} in the checkpoint, whose state fits no other optimizer: '
                             f'set it back, or begin anew with load_from=... and without --resume')

    def before_train(self, runner: Any) -> None:
        """Take up the config's schedule where it differs."""
        before, self._before = self._before, {}
        now = json.loads(json.dumps(schedule_of(runner)))  # tuples are lists, as in the checkpoint
        changed = [k for k in sorted({*before, *now}) if before.get(k) != now.get(k)] if before else []
        if not changed:
            return
        said = ', '.join(f'{k} {before.get(k)} -> {now.get(k)}' for k in changed[:6])
        if isinstance(runner.optim_wrapper, OptimWrapperDict) or not self._groups:
            raise ValueError(f'--resume: {said}: with {type(runner).__name__} and this optimizer the change cannot '
                             'take effect; set it back, or begin anew with load_from=...')
        schedulers = runner.param_schedulers or []
        if any(hasattr(s, 'monitor') for s in schedulers):
            raise ValueError(f'--resume: {said}: a schedule that follows the metrics cannot be run through; set it '
                             'back, or begin anew with load_from=...')
        for group, fresh in zip(runner.optim_wrapper.param_groups, self._groups):
            group.update(copy.deepcopy(fresh))
        for scheduler, fresh in zip(schedulers, self._fresh):
            scheduler.load_state_dict(copy.deepcopy(fresh))
        loop = runner.train_loop
        run_through(schedulers, loop.epoch, loop.iter, len(loop.dataloader))
        rate = runner.optim_wrapper.param_groups[0]['lr']
        runner.logger.warning(f'Resume: {said}. The schedule differs from that of the checkpoint and is followed from '
                              f'here on, as if it had been from the start: rate {rate:.3g}')


def run_through(schedulers: List[Any], epochs: int, iters: int, length: int) -> None:
    """Step schedulers as training does, without training.

    Args:
        schedulers: At their beginning.
        epochs: Epochs that are over.
        iters: Iterations that are over.
        length: Iterations per epoch.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # about steps of the schedule without steps of the optimizer
        for step in range(max(iters, epochs * length)):
            for scheduler in schedulers:
                if not scheduler.by_epoch and step < iters:
                    scheduler.step()
            if (step + 1) % length == 0 and (step + 1) // length <= epochs:
                for scheduler in schedulers:
                    if scheduler.by_epoch:
                        scheduler.step()
