"""Adapter-only checkpoints, and the summary of what trains."""

import os
from collections import OrderedDict
from typing import Any, Dict, Optional

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from ..registry import HOOKS
from ..tuning import adapter_header, adapter_keys, find_backbone, head_keys, summary, unwrap, write_adapter
from ..weights.adapter_file import STATE_KEY


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
        self._best = runner.message_hub.get_info(
            'best_ckpt') if 'best_ckpt' in runner.message_hub.runtime_info else None

    def before_save_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        if self.full_checkpoints or not isinstance(checkpoint.get('state_dict'), dict):
            return
        model = _structure(runner)
        keep = set(adapter_keys(model))
        header = adapter_header(model, metrics=self._metrics, **_facts(runner))
        state = OrderedDict((k, v) for k, v in checkpoint['state_dict'].items() if k in keep)
        _, prefix = find_backbone(model)
        state._metadata = OrderedDict({prefix.rstrip('.'): {STATE_KEY: header}})  # type: ignore[attr-defined]
        checkpoint['state_dict'] = state
        if isinstance(checkpoint.get('ema_state_dict'), dict):
            checkpoint['ema_state_dict'] = OrderedDict(
                (k, v) for k, v in checkpoint['ema_state_dict'].items()
                if k.removeprefix('module.') in keep or not k.startswith('module.'))

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Refuse a head that does not fit before anything is copied: MMEngine would only print a line."""
        model = unwrap(_structure(runner))
        own, given = model.state_dict(), checkpoint.get('state_dict', checkpoint)
        header = checkpoint.get('meta', {}) if 'methods' in checkpoint.get('meta', {}) else None
        if header is None:
            metadata = getattr(given, '_metadata', None) or {}
            header = next((m[STATE_KEY] for m in metadata.values() if isinstance(m, dict) and STATE_KEY in m), None)
        if header is None:
            return
        for key in head_keys(model):
            if key not in given:
                raise ValueError(
                    f'the adapter has no {key}: its head is another one; use the config with which it was trained')
            if given[key].shape != own[key].shape:
                raise ValueError(
                    f'{key} has shape {tuple(given[key].shape)} in the adapter and {tuple(own[key].shape)} in the '
                    f'model: '
                    'set the number of classes of the head to that of the adapter')

    def after_val_epoch(self, runner: Any, metrics: Optional[Dict[str, float]] = None) -> None:
        if not getattr(runner, '_train_loop', None) or isinstance(runner._train_loop, dict):
            return
        self._metrics = {k: float(v) for k, v in (metrics or {}).items() if isinstance(v, (int, float))}
        self._write(runner, 'adapter')
        best = runner.message_hub.get_info('best_ckpt') if 'best_ckpt' in runner.message_hub.runtime_info else None
        if best and best != self._best:
            self._best = best
            self._write(runner, 'best_adapter')

    def after_train(self, runner: Any) -> None:
        path = self._write(runner, 'adapter')
        if path:
            runner.logger.info(f'Adapter: {path} ({os.path.getsize(path) / 1e6:.2f} MB)')

    def _write(self, runner: Any, stem: str) -> Optional[str]:
        model = runner.strategy.gathered() if _sharded(runner) else runner.model  # the processes gather together
        if not is_main_process():
            return None
        path = os.path.join(runner.work_dir, f'{stem}.safetensors')
        write_adapter(model, path, metrics=self._metrics, **_facts(runner))
        return path


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
    loader = cfg.get('test_dataloader') or cfg.get('val_dataloader') or {}
    pipeline = (loader.get('dataset') or {}).get('pipeline') if isinstance(loader, dict) else None
    preprocessing = dict(
        data_preprocessor=cfg.get('data_preprocessor') or cfg.get('model', {}).get('data_preprocessor'),
        pipeline=pipeline)
    return dict(
        classes=list(classes) if classes else None,
        preprocessing=preprocessing,
        extra=dict(experiment=runner.experiment_name))
