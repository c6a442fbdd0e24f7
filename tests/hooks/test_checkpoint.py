# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that lose nothing: a process may die at any moment, a disk may be full, and the run goes on as if nothing
had happened."""

import glob
import os
import random
import resource
import signal
import sys
import time
from functools import partial

import pytest
import torch
import toy_chance

from mmpetl.training.work_dir import newest_checkpoint
from mmpetl.weights.io import load_file

STEPS = ('replace', 'fsync', 'remove', 'unlink')


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    """A run that nothing interrupted: folder, config, work dir."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('chance')
    path = toy_chance.write(folder)
    assert toy_chance.train(path, folder / 'whole') == 0
    return folder, path, folder / 'whole'


def watched(on_step):
    """Call ``on_step(name)`` before every step by which files come, change their name or go."""
    for name in STEPS:
        real = getattr(os, name)

        def step(*args, _name=name, _real=real, **kwargs):
            on_step(_name, *args)
            return _real(*args, **kwargs)

        setattr(os, name, step)


def dying_at(number, path, work_dir, half=False):
    """A run that dies before its ``number``-th step, or in the middle of writing its ``number``-th checkpoint."""
    from mmengine.fileio import LocalBackend
    count = [0]

    def on_step(*_):
        count[0] += 1
        if count[0] == number:
            os._exit(9)

    def put(self, data, filepath):
        with open(filepath, 'wb') as file:
            file.write(bytes(data)[:len(data) // 2])
            file.flush()
            on_step()
            file.write(bytes(data)[len(data) // 2:])

    if half:
        LocalBackend.put = put
    else:
        watched(on_step)
    return toy_chance.train(path, work_dir)


def check_resumed(whole, work_dir):
    """The run goes on from what is there, ends like the whole one, and leaves nothing else behind."""
    folder, path, expected = whole
    assert not newest_checkpoint(str(work_dir)).damaged
    assert toy_chance.train(path, work_dir, '--resume') == 0
    assert toy_chance.same(work_dir / 'adapter.safetensors', expected / 'adapter.safetensors')
    assert toy_chance.same(work_dir / 'best_adapter.safetensors', expected / 'best_adapter.safetensors')
    files = {p.name for p in work_dir.iterdir() if p.is_file()}
    assert files == {p.name for p in expected.iterdir() if p.is_file()}
    assert load_file(str(work_dir / 'epoch_3.pth'))['meta']['iter'] == 9


def steps_of(whole):
    folder, path, _ = whole
    log = folder / 'steps.txt'

    def action():
        file = open(log, 'w')
        watched(lambda name, *args: (file.write(name + '\n'), file.flush()))
        return toy_chance.train(path, folder / 'steps')

    if not log.exists():
        os.waitpid(toy_chance.in_child(action), 0)
    return log.read_text().split()


def test_death_at_each_step(whole):
    """At every ninth step, and in the middle of a write."""
    steps = steps_of(whole)
    assert len(steps) > 40 and {'replace', 'fsync', 'remove'} <= set(steps)
    for half, numbers in ((False, range(4, len(steps) + 1, 9)), (True, (5, ))):
        for number in numbers:
            die(whole, number, half)


@pytest.mark.slow
def test_death_at_every_single_step(whole):
    for number in range(1, len(steps_of(whole)) + 1):
        die(whole, number, False)


def die(whole, number, half):
    folder, path, _ = whole
    work_dir = folder / f'dead_{number}_{half}'
    child = toy_chance.in_child(lambda: dying_at(number, path, work_dir, half))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9, f'step {number} was never reached'
    check_resumed(whole, work_dir)


@pytest.mark.slow
def test_sixty_kills_at_random_moments(whole):
    """SIGKILL, 60 times, the resumed runs killed as well."""
    folder, path, _ = whole
    began = time.time()
    os.waitpid(toy_chance.in_child(lambda: toy_chance.train(path, folder / 'timed')), 0)
    length, draw, kills, runs = time.time() - began, random.Random(0), 0, 0
    while kills < 60:
        work_dir = folder / f'killed_{runs}'
        runs += 1
        for _ in range(6):
            child = toy_chance.in_child(partial(toy_chance.train, path, work_dir, '--resume'))
            time.sleep(draw.uniform(0, length))
            os.kill(child, signal.SIGKILL)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            if status == 0:
                break  # it was done before
            assert status == -signal.SIGKILL
            kills += 1
            assert not newest_checkpoint(str(work_dir)).damaged
        check_resumed(whole, work_dir)
    print(f'{kills} kills in {runs} runs')


def test_pointer_is_not_needed(whole):
    """Whatever last_checkpoint says, the newest whole file is taken, and named."""
    folder, path, expected = whole
    work_dir = folder / 'pointer'
    child = toy_chance.in_child(lambda: dying_at(len(steps_of(whole)) - 3, path, work_dir))
    os.waitpid(child, 0)
    (work_dir / 'last_checkpoint').write_text('')
    good = newest_checkpoint(str(work_dir))
    broken = work_dir / 'epoch_9.pth'
    broken.write_bytes(open(good.path, 'rb').read()[:-200])
    found = newest_checkpoint(str(work_dir))
    assert found.path == good.path and len(found.damaged) == 1 and str(broken) in found.damaged[0]
    assert 'last_checkpoint names nothing' in str(found) and good.path in str(found)
    broken.unlink()
    check_resumed(whole, work_dir)


def test_only_damaged_files_are_no_beginning(whole, capfd):
    folder, path, expected = whole
    work_dir = folder / 'damaged'
    work_dir.mkdir()
    (work_dir / 'epoch_2.pth').write_bytes((expected / 'epoch_3.pth').read_bytes()[:-100])
    assert toy_chance.train(path, work_dir, '--resume') == 1
    line = [line for line in capfd.readouterr().err.splitlines() if line.startswith('error')][0]
    assert 'epoch_2.pth' in line and '--overwrite' in line
    assert toy_chance.train(path, work_dir, '--overwrite') == 0


def test_full_disk(whole):
    """A file may grow to 20 kB only: the checkpoint does not, says so in one line, and nothing that was there is lost."""
    folder, path, expected = whole
    work_dir, output = folder / 'full', folder / 'full.txt'

    def action():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        from mmpetl.hooks import checkpoint
        real = checkpoint.CheckpointHook._put

        def put(self, runner, name, **options):
            if name == 'epoch_2.pth':
                resource.setrlimit(resource.RLIMIT_FSIZE, (20000, resource.RLIM_INFINITY))
            real(self, runner, name, **options)

        checkpoint.CheckpointHook._put = put
        sys.stderr = open(output, 'w')
        return toy_chance.train(path, work_dir)

    child = toy_chance.in_child(action)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    lines = [line for line in output.read_text().splitlines() if 'error' in line.lower()]
    assert len(lines) == 1 and lines[0].startswith('error: ') and 'epoch_2.pth' in lines[0], output.read_text()
    assert 'Traceback' not in output.read_text()
    assert newest_checkpoint(str(work_dir)).path.endswith('epoch_1.pth')
    assert not glob.glob(str(work_dir / '.*.part'))
    check_resumed(whole, work_dir)


def test_two_runs_in_one_folder(whole, capfd):
    """In use, finished, and the flags that say what is wanted."""
    folder, path, expected = whole
    work_dir = folder / 'shared'
    ready, wait = os.pipe()

    def hold():
        from mmpetl.training.work_dir import claimed
        with claimed(str(work_dir)):
            os.write(wait, b'x')
            time.sleep(60)

    child = toy_chance.in_child(hold)
    os.read(ready, 1)
    assert toy_chance.train(path, work_dir) == 1
    assert f'is in use by process {child} on' in capfd.readouterr().err
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    before = (expected / 'adapter.safetensors').read_bytes()
    assert toy_chance.train(path, expected) == 1
    error = capfd.readouterr().err
    assert all(word in error for word in ('holds a run', 'adapter.safetensors', '--resume', '--overwrite', '--work-dir'))
    assert (expected / 'adapter.safetensors').read_bytes() == before
    assert toy_chance.train(path, expected, '--overwrite', '--resume') == 1
    assert 'give one of them' in capfd.readouterr().err
    assert toy_chance.train(path, expected, '--resume') == 0  # finished: nothing changes
    assert toy_chance.train(path, work_dir, '--overwrite') == 0
    assert toy_chance.same(work_dir / 'adapter.safetensors', expected / 'adapter.safetensors')


def test_wrong_metric_is_named(whole, capfd):
    folder, path, _ = whole
    assert toy_chance.train(path, folder / 'metric', '--cfg-options', 'default_hooks.checkpoint.save_best=acc/topp',
                            'default_hooks.checkpoint.rule=greater') == 1
    assert "save_best='acc/topp'" in capfd.readouterr().err
