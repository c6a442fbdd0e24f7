# SPDX-License-Identifier: Apache-2.0
"""The check of a run's adapter: model, head, classes and preprocessing, before anything is copied."""

from typing import Any, Optional, Sequence

from mmengine.hooks import Hook
from mmengine.runner.base_loop import BaseLoop

from ..adapters.facts import check_adapter, check_head, config_facts
from ..adapters.files import header_of
from ..registry import HOOKS
from ..tuning import find_backbone, unwrap


def classes_of(runner: Any) -> Optional[Sequence[str]]:
    """Class names of the data set that the run is about to use; data sets that are not built yet stay so."""
    for name in ('_test_loop', '_train_loop', '_val_loop'):
        loop = getattr(runner, name, None)
        if isinstance(loop, BaseLoop):
            return (getattr(loop.dataloader.dataset, 'metainfo', None) or {}).get('classes')
    return None


def check_run(runner: Any, checkpoint: dict, model: Any) -> None:
    """Refuse an adapter that was trained with something else than the run has; ``force_adapter=True`` in the config
    (``--force``) takes it all the same.

    Args:
        runner: The runner, its loops built.
        checkpoint: What is about to be loaded.
        model: The runner's model, with whole tensors.

    Raises:
        ValueError: The first difference, in one line that names both values.
    """
    header = header_of(checkpoint)
    if header is None:
        return
    facts, model, force = config_facts(runner.cfg), unwrap(model), bool(runner.cfg.get('force_adapter'))
    facts['classes'] = classes_of(runner) or facts['classes']
    source = str(getattr(runner, '_load_from', None) or 'the adapter')
    check_adapter(model, header, source, force, **facts)
    check_head(model, checkpoint.get('state_dict', checkpoint), source)
    if force:
        find_backbone(model)[0].petl.base['force'] = True


@HOOKS.register_module()
class BelongsHook(Hook):
    """:func:`check_run` for runs without an :class:`~mmpetl.hooks.adapter.AdapterHook`."""

    def after_load_checkpoint(self, runner: Any, checkpoint: dict) -> None:
        """Called by MMEngine before the tensors are copied."""
        model = getattr(getattr(runner, 'strategy', None), 'whole', runner.model)
        try:
            find_backbone(model)
        except ValueError:  # nothing is attached: a run of stock types
            if header_of(checkpoint) is None:
                return
            raise ValueError(f'{getattr(runner, "_load_from", None) or "the file"} holds an adapter, and the backbone '
                             f'of the config ({type(getattr(unwrap(model), "backbone", model)).__name__}) takes none: '
                             'use the config with which it was trained') from None
        check_run(runner, checkpoint, model)
