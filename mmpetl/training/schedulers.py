# SPDX-License-Identifier: Apache-2.0
"""Schedules for data of any size."""

from typing import Any

from mmengine.optim.scheduler import LinearLR as UpstreamLinearLR

from ..registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class LinearLR(UpstreamLinearLR):
    """MMEngine's ``LinearLR`` for data of any size.

    A warm-up of a part of an epoch rounds to no iteration where an epoch has one or two: a few images are all there are
    in few-shot learning. Such a warm-up is left out.
    """

    @classmethod
    def build_iter_from_epoch(cls, *args: Any, begin: float = 0, end: Any = None, epoch_length: Any = None,
                              **kwargs: Any) -> Any:
        """Build the schedule in iterations from one in epochs.

        Args:
            begin: First epoch.
            end: Epoch at which it is over; None for never.
            epoch_length: Iterations per epoch.
            *args: As for upstream.
            **kwargs: As for upstream.
        """
        if end is None or int(end * epoch_length) - int(begin * epoch_length) >= 2:
            more = {} if end is None else dict(end=end)
            return super().build_iter_from_epoch(*args, begin=begin, epoch_length=epoch_length, **more, **kwargs)
        first = int(begin * epoch_length)
        # the shortest that upstream takes (it divides by end - begin - 1), and without effect
        kwargs.update(start_factor=1., end_factor=1., by_epoch=False)
        return cls(*args, begin=first, end=first + 2, **kwargs)
