# SPDX-License-Identifier: Apache-2.0
"""The progress bar of a training run on a terminal: epoch, rate, time left, memory, loss."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
from mmengine.dist import is_main_process
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn, TimeRemainingColumn

from .said import CommandHook, by_iterations


def memory_bytes() -> int:
    """Peak memory so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


class _Rate(TextColumn):
    """Iterations a second."""

    def render(self, task: Task) -> Any:
        """As rich asks for it."""
        speed = task.finished_speed or task.speed
        return super().render(task).append('' if speed is None else f'{speed:.2f} it/s')


class BarHook(CommandHook):
    """Moves a bar after every iteration; lines of the log stand above it, without those that it replaces.

    Args:
        progress: The bar, started.
    """
    priority = 'VERY_LOW'

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task('starting', total=None, more='')
        self._before: list[tuple[logging.StreamHandler, Any]] = []

    def before_train(self, runner: Any) -> None:
        """Begin anew: a command may train several times."""
        self.progress.reset(self.task, description='starting')
        self.take(runner)

    def take(self, runner: Any) -> None:
        """Let the lines of a run go above the bar."""
        for handler in runner.logger.handlers:
            if type(handler) is logging.StreamHandler and _quiet not in handler.filters:  # a FileHandler is one, too
                self._before.append((handler, handler.stream))
                handler.addFilter(_quiet)
                handler.setStream(sys.stdout)  # rich's, while the bar is there

    def release(self) -> None:
        """Give the log back its streams."""
        for handler, stream in self._before:
            handler.removeFilter(_quiet)
            handler.setStream(stream)
        self._before.clear()

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Show where the run is."""
        loss = runner.message_hub.log_scalars.get('train/loss')  # a number already: asking a GPU for it would wait
        more = f'{memory_bytes() / 2**30:.2f} GiB' + ('' if loss is None else f'  loss {loss.current():.3f}')
        what = 'training' if by_iterations(runner) else f'epoch {runner.epoch + 1}/{runner.max_epochs}'
        self.progress.update(
            self.task, completed=runner.iter + 1, total=runner.max_iters, more=more, description=what)

    def before_val(self, runner: Any) -> None:
        """Say why the bar stands still."""
        self.progress.update(self.task, description='validating')


def _quiet(record: logging.LogRecord) -> bool:
    """Whether a line of the log is more than the bar shows."""
    return not record.getMessage().startswith(('Epoch(train)', 'Iter(train)'))


@contextmanager
def training_bar(runner: Any, console: Optional[Console] = None) -> Iterator[None]:
    """Within the context ``runner`` shows a bar if the output is a terminal; lines of the log stand above it, without
    those that it replaces. Files receive every line. Elsewhere nothing changes.

    Args:
        runner: The runner.
        console: Where the bar goes; None: standard output.
    """
    console = console or Console(file=sys.stdout)
    if not console.is_terminal or not is_main_process():
        yield
        return
    progress = Progress(TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), _Rate(''),
                        TimeRemainingColumn(), TextColumn('{task.fields[more]}'), console=console)
    hook = BarHook(progress)
    runner.register_hook(hook)
    with progress:
        hook.take(runner)
        try:
            yield
        finally:
            hook.release()
