# SPDX-License-Identifier: Apache-2.0
"""Errors of reading a sample name its file, in every loop of a run."""

from typing import Any

from mmengine.hooks import Hook

from ..registry import HOOKS
from .random_state import read_by_sample


@HOOKS.register_module()
class NameSamplesHook(Hook):
    """Let the datasets of a run name the sample that cannot be read, before a loader starts its workers."""

    priority = 'VERY_HIGH'

    def before_train(self, runner: Any) -> None:
        read_by_sample(runner.train_dataloader)

    def before_val(self, runner: Any) -> None:
        read_by_sample(runner.val_dataloader)

    def before_test(self, runner: Any) -> None:
        read_by_sample(runner.test_dataloader)
