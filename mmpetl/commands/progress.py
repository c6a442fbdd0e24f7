# SPDX-License-Identifier: Apache-2.0
"""A progress bar for commands that look at many files."""

import sys
import time
from contextlib import contextmanager
from typing import Callable, Iterator

#: Seconds between lines where there is no terminal.
PAUSE = 10.


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A function of (done, total) that moves a bar, which is gone when all is done; a line of text now and then where
    there is no terminal.

    Args:
        title: What is counted.
    """
    if not sys.stdout.isatty():
        last = time.monotonic()

        def say(done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last > PAUSE:
                last = time.monotonic()
                print(f'{done} of {total} {title}', flush=True)

        yield say
        return
    from rich.progress import Progress
    with Progress(transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
