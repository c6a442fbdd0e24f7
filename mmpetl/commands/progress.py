"""A progress bar for commands that look at many files."""

from contextlib import contextmanager
from typing import Callable, Iterator


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A function of (done, total) that moves a bar; the bar is shown on terminals and gone when all is done.

    Args:
        title: What is counted.
    """
    from rich.progress import Progress
    with Progress(transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
