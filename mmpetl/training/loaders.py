# SPDX-License-Identifier: Apache-2.0
"""A run ends its data loaders itself, whatever ends it: no worker outlives ``train()``, ``val()`` or ``test()``.

Left to torch, workers that are kept from epoch to epoch with pinned memory end when the interpreter does: an ``atexit``
function per worker waits 5 s for a worker that nobody has told to end, then kills it (14 workers: 70 s).
"""

import functools
import gc
import threading
import time
from typing import Any, Callable, Iterator, List, Sequence

from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ..clean_errors import plain_error

#: Seconds that workers get to end by themselves; one that reads a long video meanwhile is ended.
PATIENCE = 2.
#: Seconds for each further step towards an end: workers that were told to end, those that were killed, torch's threads.
GRACE = 1.


def close_loaders_after(runner: Any, *names: str) -> None:
    """Let methods of a runner shut its loaders down when they return or raise, also by KeyboardInterrupt; what a worker
    raised becomes one line.

    Args:
        runner: A runner of MMEngine. Its methods are replaced on the object: a subclass would shut out the runners that
            a config's ``runner_type`` names.
        names: Names of methods, for example ``train``.
    """
    for name in names:
        setattr(runner, name, _closing(runner, getattr(runner, name)))


def _closing(runner: Any, method: Callable[..., Any]) -> Callable[..., Any]:

    @functools.wraps(method)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return method(*args, **kwargs)
        except Exception as error:
            plain = plain_error(error)
            if plain is None:
                raise
            raise plain from error
        finally:
            close_loaders(list(loaders_of(runner)))

    return run


def loaders_of(runner: Any) -> Iterator[DataLoader]:
    """The loaders that a runner has built, those of its loops too; configs of others are left alone."""
    for part in ('train', 'val', 'test'):
        loop = getattr(runner, f'_{part}_loop', None)
        for loader in (getattr(loop, 'dataloader', None), getattr(runner, f'_{part}_dataloader', None)):
            if isinstance(loader, DataLoader):
                yield loader


def close_loaders(loaders: List[DataLoader]) -> None:
    """End the workers of all passes over some loaders, those that an error left in the middle too, in at most PATIENCE
    and three times GRACE, whatever became of the workers. The loaders can be used again, and start new workers then.

    Args:
        loaders: Loaders; passes over their datasets by other loaders end too.
    """
    datasets = {id(loader.dataset) for loader in loaders if loader.num_workers}
    if not datasets:
        return
    # Torch has no public way to end a pass, and a pass that was cut is held by the error's frames alone: this is the
    # one place that looks for passes and calls their own way of ending, which runs once however often it is called.
    passes = [each for each in gc.get_objects() if type(each) is _MultiProcessingDataLoaderIter
              and id(each._dataset) in datasets]
    workers = [worker for each in passes for worker in each._workers]
    for each in passes:
        if each._worker_pids_set:  # a worker that is killed from here on is no error of the run
            signal_handling._remove_worker_pids(id(each))
            each._worker_pids_set = False
        for queue in (each._worker_result_queue, *each._index_queues):
            queue.cancel_join_thread()  # else the interpreter's end waits until a pipe that nobody reads is empty
    # In threads, as torch waits without a limit for its thread that pins memory, which a worker that was killed inside
    # of a message leaves waiting for the rest, and for a lock that a worker held when it was killed.
    ending = [threading.Thread(target=each._shutdown_workers, daemon=True) for each in passes]
    try:
        for thread in ending:
            thread.start()
        _join(ending, PATIENCE)
    finally:
        for order in ('terminate', 'kill'):  # a worker takes the first as an order of its parent to end in peace
            for worker in workers:
                if worker.is_alive():
                    getattr(worker, order)()
            _join(workers, GRACE)
    _join(ending, GRACE)  # those that still wait are left: they do nothing more, and hold up no end of the process
    for loader in loaders:
        loader._iterator = None  # else the loader would go on with the workers that have ended


def _join(those: Sequence[Any], seconds: float) -> None:
    """Wait for threads or processes, for some seconds together."""
    until = time.monotonic() + seconds
    for each in those:
        each.join(max(0., until - time.monotonic()))
