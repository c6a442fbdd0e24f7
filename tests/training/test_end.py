# SPDX-License-Identifier: Apache-2.0
"""A run ends its loaders' workers itself: after the end, an error, an interrupt, and where a worker hangs."""

import multiprocessing
import os
import signal
import sys
import time
import types

import pytest
import torch
import toy_chance
import toy_run
from mmengine.hooks import Hook
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from mmpetl.training import loaders
from mmpetl.training.run import build_runner

WORKERS = dict(num_workers=2, persistent_workers=True, pin_memory=True, prefetch_factor=2)
#: 4 batches an epoch for the training loader, and a validation: 4 workers run at once.
CHANGES = {f'{part}_dataloader.{key}': value for part in ('train', 'val', 'test') for key, value in WORKERS.items()}


class Watch(Hook):
    """Notes the workers; ends the run at an iteration, or in the validation, by an error."""

    priority = 'LOWEST'

    def __init__(self, error=None, at=None):
        self.error, self.at, self.workers = error, at, {}

    def _look(self, here):
        self.workers.update({child.pid: child for child in multiprocessing.active_children()})
        if self.error is not None and self.at == here:
            raise self.error

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._look('train')

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._look('val')

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self._look('test')


@pytest.fixture(scope='module')
def chance(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('end')
    return folder, toy_chance.write(folder)


def runner_of(chance, name, **changes):
    folder, path = chance
    return build_runner(toy_chance.config(path, folder / name, **{**CHANGES, 'train_cfg.max_epochs': 1, **changes}))


def gone(watch, least):
    """Every worker that was seen has ended, and what torch does at the interpreter's end finds nothing to wait for."""
    assert len(watch.workers) >= least
    assert not [pid for pid in watch.workers if os.path.exists(f'/proc/{pid}')]
    began = time.monotonic()
    for worker in watch.workers.values():
        _MultiProcessingDataLoaderIter._clean_up_worker(worker)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize('error,at', [(None, None), (RuntimeError('broken'), 'train'), (KeyboardInterrupt(), 'train'),
                                      (ValueError('broken'), 'val')], ids=['end', 'error', 'interrupt', 'validation'])
def test_no_worker_outlives_train(chance, error, at):
    runner, watch = runner_of(chance, f'{at}_{type(error).__name__}'), Watch(error, at)
    runner.register_hook(watch)
    if error is None:
        runner.train()
    else:
        with pytest.raises(type(error)):
            runner.train()
    gone(watch, 2 if at == 'train' else 4)


def test_loops_of_iterations_and_workers_of_one_epoch_end(chance):
    """An endless pass over the loader, whose workers are not kept."""
    changes = {f'{part}_dataloader.persistent_workers': False for part in ('train', 'val', 'test')}
    loop = dict(type='mmpetl.IterTrainLoop', max_iters=2, val_interval=2)
    folder, path = chance
    cfg = toy_chance.config(path, folder / 'iterations', **{**CHANGES, **changes})
    cfg.train_cfg, cfg.param_scheduler = loop, None
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=2)
    runner, watch = build_runner(cfg), Watch()
    runner.register_hook(watch)
    runner.train()
    gone(watch, 3)


def test_a_runner_tests_after_it_trained(chance):
    """The loaders are of use again, with new workers that end too."""
    runner, watch = runner_of(chance, 'both'), Watch()
    runner.register_hook(watch)
    runner.train()
    before = set(watch.workers)
    runner.test()
    assert set(watch.workers) - before
    gone(watch, 6)


def test_a_worker_that_hangs_is_ended(chance, monkeypatch):
    """A worker that reads for a minute holds up the end for the patience alone; other loaders go on."""
    monkeypatch.setattr(loaders, 'PATIENCE', 0.3)

    class Slow(torch.utils.data.Dataset):

        def __len__(self):
            return 8

        def __getitem__(self, index):
            time.sleep(60 if index > 1 else 0)
            return index

    other = torch.utils.data.DataLoader(range(8), num_workers=1)
    slow = torch.utils.data.DataLoader(Slow(), num_workers=2)
    passes, going = iter(slow), iter(other)
    next(passes), next(going)
    workers = list(passes._workers)
    began = time.monotonic()
    loaders.close_loaders([slow])
    assert time.monotonic() - began < 4 and not any(worker.is_alive() for worker in workers)
    assert int(next(going)) == 1
    loaders.close_loaders([other])


class Megabytes(torch.utils.data.Dataset):
    """What a worker cannot write at once into its pipe; from sample 2 on it is killed half way, if so wanted, and holds
    the lock for writing then."""

    def __init__(self, killed):
        self.killed = killed

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if self.killed and index > 1:
            multiprocessing.connection.Connection._send = self._half
        return bytes(1 << 20)

    @staticmethod
    def _half(pipe, buffer, write=os.write):
        write(pipe._handle, buffer[:1000])
        if len(buffer) > 1000:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def pinning(monkeypatch):
    """Torch's thread that pins memory, as with a GPU; what it pins stays where it is."""
    gpu = dict(is_available=lambda: True, current_device_index=lambda: 0, set_device_index=lambda index: None,
               current_accelerator=lambda: torch.device('cuda'))
    for name, function in gpu.items():
        monkeypatch.setattr(torch.accelerator, name, function)
    monkeypatch.setattr(torch.utils.data._utils.pin_memory, 'pin_memory', lambda data, device=None: data)


@pytest.mark.parametrize('what', ['inside of a message', 'inside of a lock', 'stopped', 'in peace'])
def test_what_a_killed_worker_leaves_holds_up_nothing(pinning, monkeypatch, what):
    """Torch waits without a limit for a thread that reads the rest of a message, and for the lock of an event that a
    worker held; a worker that is stopped takes no order to end. Without any of it, all threads end too."""
    monkeypatch.setattr(loaders, 'PATIENCE', 5. if what == 'in peace' else 0.3)
    monkeypatch.setattr(loaders, 'GRACE', 5. if what == 'in peace' else 0.3)
    loader = torch.utils.data.DataLoader(Megabytes(what == 'inside of a message'), batch_size=None, num_workers=2,
                                         pin_memory=True, persistent_workers=True)
    passes, seen = iter(loader), 0
    workers, pins = list(passes._workers), passes._pin_memory_thread
    try:
        for _ in passes:
            seen += 1
    except RuntimeError as error:
        assert 'exited unexpectedly' in str(error) or 'is killed by signal' in str(error)
    assert (seen < 8) == (what == 'inside of a message')
    if what == 'inside of a lock':
        passes._workers_done_event._cond.acquire()
    if what == 'stopped':
        for worker in workers:
            os.kill(worker.pid, signal.SIGSTOP)
    began = time.monotonic()
    loaders.close_loaders([loader])
    assert time.monotonic() - began < 3 and not any(worker.is_alive() for worker in workers)
    assert pins.is_alive() == (what == 'inside of a message') and pins.daemon
    assert all(queue._joincancelled for queue in (passes._worker_result_queue, *passes._index_queues))
    loader.dataset.killed = False
    assert sum(1 for _ in loader) == 8, 'the loader can be used again'
    loaders.close_loaders([loader])


def test_a_loader_begins_again_at_once(pinning):
    """Workers of a pass have ended when its end is known: the next pass needs no pause before it, as MMEngine makes one."""
    loader = torch.utils.data.DataLoader(range(4), num_workers=2, pin_memory=True)
    for _ in range(5):
        passes = iter(loader)
        workers = list(passes._workers)
        assert sum(1 for _ in passes) == 4 and not any(worker.is_alive() for worker in workers)
    loaders.close_loaders([loader])


def test_runners_without_loaders_are_left_alone():
    """Configs of loaders, as before a run is built, are no loaders."""
    runner = types.SimpleNamespace(_train_loop={}, _val_dataloader={'batch_size': 1}, train=lambda: 3)
    loaders.close_loaders_after(runner, 'train')
    assert runner.train() == 3


def test_the_process_ends_at_once(chance):
    """Nothing is left to wait for when the tool is done, and the process ends within 5 s of it (more on a busy machine,
    where the interpreter's own end takes as long)."""
    folder, path = chance
    code = ('import multiprocessing, sys, threading, time; from mmpetl.training.run import train; train(sys.argv[1:]); '
            'left = [*multiprocessing.active_children(), *(t for t in threading.enumerate() if not t.daemon)]; '
            'print(f"finished with {len(left)} at {time.time():f}", flush=True)')
    options = [f'{key}={value}' for key, value in {**CHANGES, 'train_cfg.max_epochs': 1}.items()]
    done = toy_run.command(sys.executable, '-c', code, path, '--work-dir', folder / 'process', '--cfg-options', *options,
                           cwd=toy_run.ROOT)
    ended = time.time()
    assert done.returncode == 0, done.stderr[-2000:]
    count, at = done.stdout.split('finished with ')[1].split()[::2]
    assert count == '1', 'the main thread alone'
    assert ended - float(at) < 5 * max(1, os.getloadavg()[0] / os.cpu_count())
