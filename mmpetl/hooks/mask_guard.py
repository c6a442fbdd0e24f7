# SPDX-License-Identifier: Apache-2.0
"""Masks are looked at before the first step, and before a test."""

import logging
from typing import Any, Iterator, List

from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook

from ..datasets.masks import look_at_masks, mask_path, reads_masks, refuse
from ..registry import HOOKS
from ..tuning import unwrap
from .data_guard import _classes, _parts


@HOOKS.register_module()
class MaskGuardHook(Hook):
    """Refuse masks of segmentation that are missing, damaged, of another size than their picture, of several channels,
    or that hold what is no class; warn of classes of which training has no pixel.

    Upstream names no file, finds some of that after an epoch, and scores the rest as it is. Every mask is opened once;
    ``check_masks=False`` in the config leaves that out. Data sets without ``seg_map_path``, and pipelines with another
    reader of masks than mmsegmentation's ``LoadAnnotations``, are left alone.

    Raises:
        ValueError: Naming the data set's key and the files.
    """

    priority = 'HIGH'  # when it was said what there is, before what works with it

    def before_train(self, runner: Any) -> None:
        check_masks(runner, 'train', 'val')

    def before_test(self, runner: Any) -> None:
        check_masks(runner, 'test')


def check_masks(runner: Any, *names: str) -> None:
    """Look at the masks of the loops ``names`` of a runner; one process does it for all.

    Raises:
        ValueError: See :class:`MaskGuardHook`.
    """
    model = unwrap(runner.model)
    count = getattr(model, 'num_classes', None)
    if not hasattr(model, 'decode_head') or not isinstance(count, int) or not runner.cfg.get('check_masks', True):
        return
    said: List[Any] = [None]
    if is_main_process():
        try:
            said = [[line for name in names for line in _check(runner, name, model, count)]]
        except ValueError as error:
            said = [str(error)]
    broadcast_object_list(said)
    if isinstance(said[0], str):
        raise ValueError(said[0])
    for line in said[0] or ():
        runner.logger.log(logging.WARNING, line)


def _check(runner: Any, name: str, model: Any, count: int) -> Iterator[str]:
    """Lines about the masks of a loop's data sets."""
    head = model.decode_head[-1] if hasattr(model.decode_head, '__getitem__') else model.decode_head
    ignored = int(getattr(head, 'ignore_index', 255))
    loader = getattr(getattr(runner, f'_{name}_loop', None), 'dataloader', None)
    for where, part in _parts(getattr(loader, 'dataset', None), f'{name}_dataloader.dataset'):
        reads, sizes = reads_masks(getattr(getattr(part, 'pipeline', None), 'transforms', ()))
        if not reads or not hasattr(part, 'get_data_info'):
            continue
        infos = [part.get_data_info(i) for i in range(len(part))]
        listed = [info for info in infos if mask_path(info)]
        if listed:
            found = look_at_masks(listed, count, ignored, sizes=sizes, title=f'masks of {where}')
            line = refuse(found, len(listed), where, _classes(part), count, ignored) if (
                found.problems or name == 'train') else ''
            yield from [line] if line else []
