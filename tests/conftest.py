# SPDX-License-Identifier: Apache-2.0
"""What every test starts from: no default scope left behind by a run of another test, and no launcher's variables.
Which tests share a process when the suite runs in several; and how a test ends that would never end."""

import faulthandler
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.registry import DefaultScope

# a logger of MMEngine outlives the test that made it, and so the stdout that pytest gave to that test
logging.raiseExceptions = False


# their tests share nothing that is dear to make, and together they last longer than a fair share of the suite
SPREAD = ('test_generic.py', 'test_lifecycle.py', 'test_infer.py', 'test_recipes.py')


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With `-n N --dist loadscope` the tests of one file run in one process, where they share its fixtures; those of
    the files in SPREAD go wherever there is time."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        """A file is a scope. Marks cannot say so: xdist 3.8 writes them into ids that pytest 9.2 no longer reads."""

        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split('::')[0]
            return nodeid if file.rpartition('/')[2] in SPREAD else file

    return ByFile(config, log) if config.getoption('dist') == 'loadscope' else None


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini('test_limit', 'seconds that a test may take; six times as many where it is slow or for a GPU', default='300')


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that waits for ever fails: what it started is killed; should it wait still, it is interrupted; and should
    that not help either, its process ends."""
    long = any(item.get_closest_marker(mark) for mark in ('slow', 'gpu'))
    seconds = float(item.config.getini('test_limit')) * (6 if long else 1)
    over = threading.Event()
    signal.signal(signal.SIGUSR2, lambda *_: pytest.fail(f'it took more than {seconds:g} s'))
    watch = threading.Thread(target=end_what_hangs, args=(item.nodeid, seconds, over), daemon=True)
    watch.start()
    try:
        return (yield)
    finally:
        over.set()


def end_what_hangs(name: str, seconds: float, over: threading.Event) -> None:
    """Wait for the test; of one that takes too long, print where every thread stands."""
    if over.wait(seconds):
        return
    if os.environ.get('MMPETL_HUNG'):  # of tools/run_tests.sh
        with open(os.environ['MMPETL_HUNG'], 'a') as file:
            file.write(f'{name}\n')
    started = descendants(os.getpid())
    print(f'{name} took more than {seconds:g} s; processes that it started: {started or "none"}', file=sys.stderr, flush=True)
    faulthandler.dump_traceback(file=sys.__stderr__)
    for pid in started:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    if not over.wait(seconds / 5):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)
    if not over.wait(seconds / 5):
        os._exit(1)


def descendants(pid: int) -> dict[int, str]:
    """Processes that a process started and theirs -> their command lines; none where there is no /proc."""
    found: dict[int, str] = {}
    for file in Path(f'/proc/{pid}/task').glob('*/children'):
        try:
            for child in map(int, file.read_text().split()):
                found[child] = Path(f'/proc/{child}/cmdline').read_text().replace('\0', ' ').strip()[:200]
                found.update(descendants(child))
        except OSError:  # it has ended meanwhile
            pass
    return found


@pytest.fixture(autouse=True)
def clean_scope(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """MMEngine looks types up in the scope of the latest runner of the process; a test must not depend on which tests
    ran before it."""
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.delenv(name, raising=False)
    before = dict(DefaultScope._instance_dict)
    DefaultScope._instance_dict.clear()
    yield
    DefaultScope._instance_dict.clear()
    DefaultScope._instance_dict.update(before)


@pytest.fixture(autouse=True, scope='module')
def quick() -> Iterator[None]:
    """What takes longer than a run of these sizes: the layout of a config's text, the disk's own cache, MMEngine's pause
    before a loop by iterations begins its data again, and the traces that torch keeps of seeds for devices that are not
    there. Files are still written beside and renamed; commands that tests start as processes wait for all of it.
    """
    with pytest.MonkeyPatch.context() as patch:
        for device in (torch.cuda, torch.xpu, torch.mtia):
            if not device.is_available():
                patch.setattr(device, 'manual_seed_all', lambda seed: None)
        patch.setattr('os.fsync', lambda descriptor: None)
        patch.setattr(gc, 'unfreeze', lambda: None)  # see small_heap
        for module, name, value in (('mmengine.config.config', 'FormatCode', lambda text, **_: (text, False)),
                                    ('mmengine.runner.loops', 'time', SimpleNamespace(sleep=lambda seconds: None))):
            if module in sys.modules:
                patch.setattr(sys.modules[module], name, value)
        yield


@pytest.fixture(autouse=True)
def small_heap() -> None:
    """MMEngine collects all garbage for every data set: half a second, were everything imported and kept looked at again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def trials_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trials of a sweep run in the test's own process, which can then reach into them and starts none."""
    from mmpetl.sweeps import workers
    from mmpetl.sweeps.trial import run_trial

    class Here:
        """As :class:`mmpetl.sweeps.workers.Worker`, without a process."""

        def __init__(self, gpu: object = None) -> None:
            self.run = run_trial

        def close(self) -> None:
            """Nothing to end."""

    monkeypatch.setattr(workers, 'Worker', Here)
