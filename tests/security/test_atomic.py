# SPDX-License-Identifier: Apache-2.0
"""Nothing is ever half there: writers are killed in the middle, and what they leave goes at the next start."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from mmpetl.weights import adapter_file, atomic
from mmpetl.weights.atomic import atomic_write, into_folder, locked, part_folder, part_of, remove_dead_parts, write_json

KILLS = 50
HEADER = dict(methods=[dict(type='LoRA', rank=2)], tune=[], trunk='eval', backbone='x', base=dict(id='b'))


def child(work):
    """Run ``work`` over and over in a child that shares this process's imports; returns its number."""
    pid = os.fork()
    if pid:
        return pid
    try:
        atomic._host.cache_clear()
        for number in range(1 << 30):
            work(number)
    finally:
        os._exit(1)


def kill(*pids):
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        os.waitpid(pid, 0)


def killed_again_and_again(work, check, kills=KILLS):
    """Start two writers at a time, kill both at a random moment; ``check`` after each kill. Returns what was seen."""
    rng, seen = np.random.default_rng(0), []
    for _ in range(kills // 2):
        pids = [child(work), child(work)]
        time.sleep(rng.uniform(0.002, 0.03))
        kill(*pids)
        seen.append(check())
    assert len({str(s) for s in seen}) > 1, 'no writer got anywhere: the kills prove nothing'
    return seen


def parts(folder):
    return [p.name for p in folder.iterdir() if p.name.endswith('.part')]


def slowly(data):
    """A writer that is in the middle for most of its time."""
    def write(file):
        for start in range(0, len(data), 1 << 12):
            file.write(data[start:start + (1 << 12)])
            file.flush()
            time.sleep(0.0005)
    return write


def test_two_writers_of_one_file_killed_50_times(tmp_path):
    path = tmp_path / 'x.json'
    write_json(path, dict(number=-1, fill='0' * 30000))

    def work(number):
        atomic_write(path, slowly(json.dumps(dict(number=number, fill=str(number % 10) * 30000)).encode()))

    def check():
        found = json.loads(path.read_text())
        assert found['fill'] == str(found['number'] % 10)[-1:] * 30000 or found['number'] == -1
        return found['number'], len(parts(tmp_path))

    seen = killed_again_and_again(work, check)
    assert any(left for _, left in seen), 'no kill came in the middle'
    atomic._swept.clear()
    write_json(path, dict(number=0))
    assert [p.name for p in tmp_path.iterdir()] == ['x.json']


def test_two_writers_of_one_adapter_killed_50_times(tmp_path):
    path = tmp_path / 'a.safetensors'
    adapter_file.save(path, {'w': torch.zeros(4096)}, HEADER)

    def work(number):
        adapter_file.save(path, {'w': torch.full((4096, ), number % 7)}, dict(HEADER, extra=dict(number=number)))

    def check():
        tensors, header = adapter_file.load(path)
        assert tensors['w'].unique().tolist() == [header['extra'].get('number', 0) % 7 if 'extra' in header else 0]
        return header.get('extra')

    killed_again_and_again(work, check)
    atomic._swept.clear()
    adapter_file.save(path, {'w': torch.zeros(4)}, HEADER)
    assert [p.name for p in tmp_path.iterdir()] == ['a.safetensors']


def test_two_makers_of_one_folder_killed_50_times(tmp_path):
    """The folder is complete at every moment at which it is there; who lost the race leaves no trace."""
    target, files = tmp_path / 'cache/data', [f'{i}.txt' for i in range(8)]

    def work(number):
        def fill(folder):
            for name in files:
                (folder / name).write_text(str(number))
                time.sleep(0.0003)
        into_folder(target, fill)

    def check():
        if not target.exists():  # between taking the old one away and putting the new one there
            return None
        assert sorted(p.name for p in target.iterdir()) == files
        assert len({p.read_text() for p in target.iterdir()}) == 1
        return (target / files[0]).read_text()

    killed_again_and_again(work, check)
    atomic._swept.clear()
    into_folder(target, lambda folder: None)
    assert [p.name for p in target.parent.iterdir()] == ['data']


def test_a_lock_ends_with_its_process(tmp_path):
    log = tmp_path / 'log'

    def work(number):
        with locked(tmp_path / 'lock'):
            with open(log, 'a') as file:
                file.write('(')
                file.flush()
                time.sleep(0.0005)
                file.write(')')

    rng = np.random.default_rng(1)
    for _ in range(10):
        pids = [child(work), child(work)]
        time.sleep(rng.uniform(0.01, 0.03))
        kill(*pids)
    assert log.read_text().count('((') <= 10, 'only a killed holder leaves its bracket open'
    with locked(tmp_path / 'lock'):  # nobody holds it any more
        pass
    assert log.read_text().count(')') > 10
    assert [p.name for p in tmp_path.iterdir()] == ['log'], 'no lock stays behind'


def touch(path, age=0.):
    path.write_text('x')
    os.utime(path, (time.time() - age, ) * 2)
    return path


def test_whose_parts_are_removed(tmp_path):
    """Those of dead processes; never those of living ones, whoever they are."""
    living = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE)
    dead = subprocess.Popen([sys.executable, '-c', ''])
    dead_start = atomic.started(dead.pid)
    dead.wait()
    host, start = atomic._host(), atomic.started(living.pid)
    keep = [
        touch(tmp_path / f'.a.{host}~{living.pid}~{start}.abcdefgh.part', 1e7),
        touch(tmp_path / f'.a.{host}~{os.getpid()}~{atomic.started(os.getpid())}.abcdefgh.part', 1e7),
        touch(tmp_path / '.a.another-host-1~1~1.abcdefgh.part'),
        touch(tmp_path / '.a.abcdefgh.part'),  # of an earlier version, minutes old
        touch(tmp_path / 'a.part', 1e7),
        touch(tmp_path / '.hidden', 1e7),
        part_of(tmp_path / 'b'),
    ]
    keep[-1].mkdir()
    gone = [
        touch(tmp_path / f'.a.{host}~{dead.pid}~{dead_start or 5}.abcdefgh.part'),
        touch(tmp_path / f'.a.{host}~{living.pid}~{start + 1}.abcdefgh.part'),  # its number was given to another
        touch(tmp_path / '.a.another-host-1~1~1.abcdefgi.part', 1e7),
        touch(tmp_path / '.a.abcdefgi.part', 1e7),
    ]
    folder = tmp_path / f'.f.{host}~{dead.pid}~1.abcdefgh.part'
    (folder / 'deep').mkdir(parents=True)
    outside = touch(tmp_path / 'outside.txt')
    (folder / 'deep/link').symlink_to(outside)
    link = tmp_path / f'.l.{host}~{dead.pid}~1.abcdefgh.part'
    link.symlink_to(tmp_path / 'outside.txt')
    try:
        removed = remove_dead_parts(tmp_path)
    finally:
        living.communicate(b'\n')
    assert sorted(removed) == sorted([*(p.name for p in gone), folder.name, link.name])
    assert all(p.exists() for p in keep) and outside.read_text() == 'x'


def test_a_new_process_cleans_up(tmp_path):
    """The first write of the next start removes what a killed one left."""
    code = ('import os, sys, time\nfrom mmpetl.weights.atomic import atomic_write, part_folder\n'
            'folder = sys.argv[1]\nwith part_folder(folder, "data"):\n'
            '    atomic_write(folder + "/x", lambda file: (file.write(b"half"), file.flush(), os.kill(os.getpid(), 9)))')
    root = Path(atomic.__file__).parents[2]
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path)], cwd=root, env={**os.environ, 'PYTHONPATH': str(root)})
    assert done.returncode == -signal.SIGKILL
    left = parts(tmp_path)
    assert len(left) == 2 and all(socket.gethostname()[:5] in name for name in left)
    atomic._swept.clear()
    atomic_write(tmp_path / 'x', lambda file: file.write(b'whole'))
    assert [p.name for p in tmp_path.iterdir()] == ['x'] and (tmp_path / 'x').read_bytes() == b'whole'


def test_errors_leave_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), part_folder(tmp_path) as part:
        (part / 'half').write_text('')
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
