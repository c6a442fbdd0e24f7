# SPDX-License-Identifier: Apache-2.0
"""Adapter-only checkpoints, and the summary of what trains."""

import os
from collections import OrderedDict
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional

from mmengine.dist import is_main_process
from mmengine.hooks import EMAHook, Hook

from ..adapters.facts import config_facts
from ..registry import HOOKS
from ..tuning import adapter_header, adapter_keys, find_backbone, summary, write_adapter
from ..weights.adapter_file import STATE_KEY
from ..weights.io import file_size
from .adapter_check import check_run
from .guards import guard_of


@HOOKS.register_module()
class AdapterHook(Hook):
    """Write what was trained instead of the whole model.

    * ``<work_dir>/adapter.safetensors``: the last state, with a header that names methods, base, head, classes, metrics
      and versions.
    * ``<work_dir>/best_adapter.safetensors``: the best one, when the checkpoint hook saves a best checkpoint.
    * MMEngine's own checkpoints hold the adapter, the optimizer and the loop only, so ``--resume`` still continues bit
      by bit; the base comes back from where ``init_cfg`` found it, checked by its fingerprint.

    Args:
        full_checkpoints: Leave MMEngine's checkpoints whole (base included).
    """

    # After CheckpointHook, so that the best score is known when the best adapter is written.
    priority = 'LOWEST'

    def __init__(self, full_checkpoints: bool = False) -> None:
        self.full_checkpoints = full_checkpoints
        self._metrics: Dict[str, float] = {}
        self._best: Optional[str] = None

    def before_train(self, runner: Any) -> None:
        runner.logger.info(f'What trains:\n{summary(_structure(runner))}')
        info = runner.message_hub.runtime_info
        self._best = info.get('best_ckpt')
        # of the last validation before a run was cut
        self._metrics = {k: float(v) for k, v in (info.get('last_metrics') or {}).items()}

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        if self.full_checkpoints or not isinstance(checkpoint.get('state_dict'), dict):
            return
        model = _structure(runner)
        keep = set(adapter_keys(model))
        header = adapter_header(model, metrics=self._metrics, **_facts(runner))
        state = OrderedDict((k, v) for k, v in checkpoint['state_dict'].items() if k in keep)
        _, prefix = find_backbone(model)
        # torch hands what is written here under a prefix to the load hook of the module of that prefix
        state._metadata = OrderedDict({prefix.rstrip('.'): {STATE_KEY: header}})  # type: ignore[attr-defined]
        checkpoint['state_dict'] = state
        if isinstance(checkpoint.get('ema_state_dict'), dict):
            # beside averages ('module.') an EMAHook counts its steps
            checkpoint['ema_state_dict'] = OrderedDict(
                (k, v) for k, v in checkpoint['ema_state_dict'].items()
                if k.removeprefix('module.') in keep or not k.startswith('module.'))

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Refuse an adapter that does not belong here before anything is copied."""
        check_run(runner, checkpoint, _structure(runner))

    def after_val_epoch(self, runner: Any, metrics: Optional[Dict[str, float]] = None) -> None:
        if not getattr(runner, '_train_loop', None) or isinstance(runner._train_loop, dict):
            return  # a run that only validates: its training was never built
        self._metrics = {k: float(v) for k, v in (metrics or {}).items() if isinstance(v, (int, float))}
        guard = guard_of(runner)
        if guard is not None and not guard.moved(runner) and not _sharded(runner):
            return  # the guard tells when the run is over
        self._write(runner, 'adapter')
        best = runner.message_hub.get_info('best_ckpt') if 'best_ckpt' in runner.message_hub.runtime_info else None
        if best and best != self._best:
            self._best = best
            self._write(runner, 'best_adapter')

    def after_train(self, runner: Any) -> None:
        path = self._write(runner, 'adapter')
        if path:
            runner.logger.info(f'Adapter: {path} ({file_size(path)})')

    def _write(self, runner: Any, stem: str) -> Optional[str]:
        model = runner.strategy.gathered() if _sharded(runner) else runner.model  # the processes gather together
        if not is_main_process():
            return None
        path = os.path.join(runner.work_dir, f'{stem}.safetensors')
        with _averaged(runner):  # the hook itself has taken the averages out again when validation was over
            write_adapter(model, path, metrics=self._metrics, **_facts(runner))
        return path


@contextmanager
def _averaged(runner: Any) -> Iterator[None]:
    """Within the context the model has the averaged weights of an ``EMAHook``, with which it was validated."""
    hooks = [hook for hook in runner.hooks if isinstance(hook, EMAHook)]
    for hook in hooks:
        hook._swap_ema_parameters()
    try:
        yield
    finally:
        for hook in hooks[::-1]:
            hook._swap_ema_parameters()


def _sharded(runner: Any) -> bool:
    """Whether every process holds a part of each tensor (see :class:`mmpetl.training.parallel.FSDPStrategy`)."""
    return hasattr(getattr(runner, 'strategy', None), 'gathered')


def _structure(runner: Any) -> Any:
    """A model with whole tensors, for names and shapes: under FSDP its trained tensors are not up to date."""
    return runner.strategy.whole if _sharded(runner) else runner.model


def _facts(runner: Any) -> Dict[str, Any]:
    """Classes and preprocessing of the run, for the header."""
    meta = getattr(getattr(runner, 'train_dataloader', None), 'dataset', None)
    meta = getattr(meta, 'metainfo', None) or {}
    classes = meta.get('classes')
    cfg = runner.cfg
    preprocessing = dict(
        data_preprocessor=cfg.get('model', {}).get('data_preprocessor') or cfg.get('data_preprocessor'),
        pipeline=config_facts(cfg)['pipeline'])
    return dict(
        classes=list(classes) if classes else None,
        preprocessing=preprocessing,
        extra=dict(experiment=runner.experiment_name))
