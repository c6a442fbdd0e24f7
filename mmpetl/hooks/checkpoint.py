# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that lose nothing: written beside, synced and renamed, with all random states, the old one removed last.

MMEngine's hook removes the old checkpoint first, writes the new one in place and then cuts the pointer
``last_checkpoint`` to nothing before it writes it anew: a death in any of these moments leaves a run that cannot be
resumed.
"""

import errno
import os
import re
import shutil
import time
from typing import Any, Dict, List, Optional

import torch
from mmengine.dist import all_gather_object, barrier, get_world_size, is_main_process
from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook as UpstreamCheckpointHook

from ..registry import HOOKS
from ..tuning import unwrap
from ..weights.atomic import atomic_write, part_of, sync_folder
from .random_state import random_state

#: Entry of a checkpoint that holds what MMEngine leaves out.
STATE = 'mmpetl_run'
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@HOOKS.register_module()
class CheckpointHook(UpstreamCheckpointHook):
    """MMEngine's checkpoint hook, with the same arguments, for runs that may die at any moment.

    A checkpoint is written under a name of its own, synced to the disk and renamed; so is the pointer
    ``last_checkpoint``. Only then is what it replaces removed. It holds the random states of all processes and says
    whether the validation that follows it is still to be done, so that a resumed run does what the first one would
    have done. Folders that DeepSpeed writes, and storage services, keep MMEngine's way of writing.

    Raises:
        OSError: Where the disk is full; what was there before is whole.
        ValueError: If ``save_best`` names a metric that validation does not give.
    """
    best_ckpt_path: Optional[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.resumed: Dict[str, Any] = {}
        self._outdated: List[str] = []
        self._states: List[Any] = []
        self._pending, self._updated = True, False

    # -- resuming -----------------------------------------------------------------------------------------------------

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Keep what the loop takes up when training begins."""
        if getattr(runner, '_resume', False):
            self.resumed = dict(checkpoint.get(STATE) or {}, found=STATE in checkpoint)

    def before_train(self, runner: Any) -> None:
        """Find the folder, and remove what a dead process did not come to remove."""
        super().before_train(runner)
        if is_main_process():
            for name in runner.message_hub.runtime_info.get('outdated_ckpts', []):
                # out of a file, so never more than a name in the own folder
                if os.path.basename(name) == name and name.endswith('.pth') and name != os.path.basename(
                        str(self.last_ckpt)):
                    _remove(os.path.join(self.out_dir, name))

    # -- saving -------------------------------------------------------------------------------------------------------

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Add what MMEngine leaves out."""
        loop = runner.train_loop
        checkpoint[STATE] = dict(
            random=self._states,
            epoch_random=getattr(loop, 'epoch_states', None),
            pending_validation=self._pending,
            batches=len(loop.dataloader),
            # of an update that has not collected all its batches
            gradients={n: p.grad.detach().cpu() for n, p in unwrap(runner.model).named_parameters()
                       if p.grad is not None} if _accumulates(runner) else {},
            number=runner.message_hub.runtime_info.get('saved_checkpoints', 0))

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict) -> None:
        info = runner.message_hub
        if self.max_keep_ckpts > 0:
            if step not in self.keep_ckpt_ids:
                if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                    self._outdate(self.filename_tmpl.format(self.keep_ckpt_ids.popleft()))
                self.keep_ckpt_ids.append(step)
            info.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        info.update_info('last_ckpt', self.last_ckpt)
        # Its counters come in meta: upstream would count one more after a validation.
        self._put(runner, name, save_optimizer=self.save_optimizer, save_param_scheduler=self.save_param_scheduler,
                  meta=meta, by_epoch=self.by_epoch, **self.args)
        if is_main_process():
            pointer, text = os.path.join(runner.work_dir, 'last_checkpoint'), str(self.last_ckpt).encode()
            atomic_write(pointer, lambda file: file.write(text))
            for path in self._outdated:
                self._drop(path)
        self._outdated = []

    def _outdate(self, name: str) -> None:
        path = os.path.join(self.out_dir, name)
        if path not in self._outdated:
            self._outdated.append(path)

    def _drop(self, path: str) -> None:
        if isinstance(self.file_backend, LocalBackend):
            _remove(path)
        elif self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):
            self.file_backend.rmtree(path)

    def _put(self, runner: Any, name: str, **options: Any) -> None:
        """Write a checkpoint as a whole or not at all; all processes call it together."""
        info = runner.message_hub
        info.update_info('outdated_ckpts', [os.path.basename(path) for path in self._outdated])
        # grows within a run, and over the runs that left files in one folder
        saved = max(info.runtime_info.get('saved_checkpoints', 0) + 1, int(time.time() * 1000))
        info.update_info('saved_checkpoints', saved)
        self._states = _everywhere(random_state())
        common = dict(file_client_args=self.file_client_args, backend_args=self.backend_args)
        path = os.path.join(self.out_dir, name)
        part = part_of(path).name
        in_place = not isinstance(self.file_backend, LocalBackend) or 'DeepSpeed' in type(
            getattr(runner, 'strategy', None)).__name__
        try:
            runner.save_checkpoint(self.out_dir, name if in_place else part, **common, **options)
            if not in_place:
                barrier()
                if is_main_process():
                    settle(os.path.join(self.out_dir, part), path)
        except OSError as error:
            if not in_place:
                _remove(os.path.join(self.out_dir, part))
            if error.errno in _FULL:
                raise OSError(f'{path} was not written: {error.strerror}; the checkpoints before it are whole: make '
                              'room and go on with --resume') from error
            raise

    # -- the best one -------------------------------------------------------------------------------------------------

    def after_train_epoch(self, runner: Any) -> None:
        self._pending = True
        super().after_train_epoch(runner)

    def after_train_iter(self, runner: Any, *args: Any, **kwargs: Any) -> None:
        self._pending = True
        super().after_train_iter(runner, *args, **kwargs)

    def after_val_epoch(self, runner: Any, metrics: Optional[Dict[str, float]] = None) -> None:
        """Save the best checkpoint."""
        # the config of a loop, or nothing, in a run that only validates
        if isinstance(getattr(runner, '_train_loop', None), (dict, type(None))):
            return
        plain = {k: float(v) for k, v in (metrics or {}).items() if isinstance(v, (int, float))}
        runner.message_hub.update_info('last_metrics', plain)
        self._updated = bool(metrics) and self._save_best(runner, metrics or {}, self._step(runner))

    def _step(self, runner: Any) -> int:
        return runner.epoch if self.by_epoch else runner.iter

    def after_val(self, runner: Any) -> None:
        """After all hooks have done what follows a validation: save the last checkpoint once more if there is a new
        best one or the run is over, and remove what the best one replaced."""
        if isinstance(getattr(runner, '_train_loop', None), (dict, type(None))):
            return
        self._pending = False
        step = self._step(runner)
        last = step >= (runner.max_epochs if self.by_epoch else runner.max_iters)
        if (self._updated or last) and self.last_ckpt is not None:
            # with the name and score of the best one, which are new, and without a validation to be done
            self._save_checkpoint_with_step(runner, step, dict(epoch=runner.epoch, iter=runner.iter))
        elif self._outdated and is_main_process():
            for path in self._outdated:
                self._drop(path)
            self._outdated = []
        self._updated = False

    def _save_best(self, runner: Any, metrics: Dict[str, float], step: int) -> bool:
        """Save the best checkpoint by every metric that improved; what it replaces is only noted."""
        if not self.save_best:
            return False
        if 'auto' in self.key_indicators:
            self._init_rule(self.rules, [next(iter(metrics))])
        updated = False
        single, info = len(self.key_indicators) == 1, runner.message_hub
        for key, rule in zip(self.key_indicators, self.rules):
            if key not in metrics:
                raise ValueError(f'default_hooks.checkpoint.save_best={key!r}: validation gives no such metric, only '
                                 f'{", ".join(metrics)}')
            tail = '' if single else f'_{key}'
            before = info.runtime_info.get(f'best_score{tail}', self.init_value_map[rule or 'greater'])
            if metrics[key] is None or not self.is_better_than[key](metrics[key], before):
                continue
            updated = True
            old = self.best_ckpt_path if single else self.best_ckpt_path_dict.get(key)
            name = f'best_{key}_{self.filename_tmpl.format(step)}'.replace('/', '_')
            path = self.file_backend.join_path(self.out_dir, name)
            if old and old != path:
                self._outdate(os.path.basename(old))
            if single:
                self.best_ckpt_path = path
            else:
                self.best_ckpt_path_dict[key] = path
            info.update_info(f'best_score{tail}', metrics[key])
            info.update_info(f'best_ckpt{tail}', path)
            self._put(runner, name, save_optimizer=False, save_param_scheduler=False, by_epoch=False,
                      meta=dict(epoch=runner.epoch, iter=runner.iter))
            runner.logger.info(
                f'The best checkpoint with {metrics[key]:0.4f} {key} at step {step} is saved to {name}.')
        return updated


def settle(part: str, path: str) -> None:
    """Give a complete file its name, after it has reached the disk."""
    handle = os.open(part, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    os.replace(part, path)
    sync_folder(os.path.dirname(path) or '.')


def _remove(path: str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path)  # DeepSpeed writes folders
    elif os.path.exists(path):
        os.remove(path)


def _everywhere(value: Any) -> List[Any]:
    return all_gather_object(value) if get_world_size() > 1 else [value]


def _accumulates(runner: Any) -> bool:
    return getattr(runner.optim_wrapper, '_accumulative_counts', 1) > 1


def give_back_gradients(model: torch.nn.Module, gradients: Dict[str, torch.Tensor]) -> None:
    """Put gradients of a half-collected update back onto a model's parameters."""
    named = dict(unwrap(model).named_parameters())
    for name, gradient in gradients.items():
        named[name].grad = gradient.to(named[name])


def step_in_name(name: str) -> int:
    """The last number in a checkpoint's name, -1 if there is none."""
    found = re.findall(r'\d+', name.rsplit('.', 1)[0])
    return int(found[-1]) if found else -1
