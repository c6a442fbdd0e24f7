# SPDX-License-Identifier: Apache-2.0
"""The command that checks a GPU, on the CPU: it ends, and leaves a table and a JSON that say what is so."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'benchmarks'))
import gpu_check  # noqa: E402
from device_checks import GPU_ONLY  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_a_few_rows_on_the_cpu(tmp_path, monkeypatch):
    def here(self, jobs, until, **_):
        for command, _path in jobs:
            gpu_check.main(command[2:])

    monkeypatch.setattr(gpu_check, 'FEW', gpu_check.FEW[:1])
    monkeypatch.setattr(gpu_check.Watch, 'run', here)
    monkeypatch.setattr(gpu_check, 'MORE', {})
    monkeypatch.setattr(gpu_check.faulthandler, 'dump_traceback_later', lambda *_, **__: None)
    monkeypatch.setattr(gpu_check, 'BATCHES', dict(vit=64))
    monkeypatch.setattr(gpu_check, 'TIMED', ('LoRA', ))
    assert gpu_check.main(['--device', 'cpu', '--few', '--out', str(tmp_path)]) == 0
    result = json.loads((tmp_path / 'gpu_check.json').read_text())
    assert {e['check'] for e in result['methods']} == set(gpu_check.CHECKS) - set(GPU_ONLY)
    assert all(e['state'] == 'passed' for e in result['methods'])
    assert [e['check'] for e in result['speed']] == ['full', 'LoRA', 'LoRA, plain']
    table = (tmp_path / 'gpu_check.md').read_text()
    assert '| placement | 1 | 0 | 0 |' in table and '| vit | LoRA | 2 |' in table and 'None.' in table
    assert '* SynQT on cached features' in table.split('## Not measured')[1]


def test_failures_and_lack_of_time_are_told(monkeypatch):
    def broken(*_):
        raise RuntimeError('off the device')

    monkeypatch.setitem(gpu_check.CHECKS, 'placement', broken)
    found = gpu_check.methods('meta', ['LoRA-vit'], until=float('inf'))
    assert found == [dict(row='LoRA-vit', check='placement', state='failed', message='RuntimeError: off the device')]
    assert gpu_check.methods('meta', ['LoRA-vit'], until=0)[0]['state'] == 'not reached'
    result = dict(hardware=dict(gpu=None, cpu='a', torch='b'), methods=found, runs=[], speed=[], seconds=1)
    assert '* LoRA-vit placement: RuntimeError: off the device' in gpu_check.markdown(result)


def test_a_model_that_cannot_be_timed_hides_no_other(monkeypatch):
    def full_memory(make, *_):
        raise torch.OutOfMemoryError('out of memory\nmore')

    monkeypatch.setattr(gpu_check, '_time', full_memory)
    found = gpu_check.speed(gpu_check.parse(['--device', 'cpu', '--size', 'tiny']), until=float('inf'))
    assert len(found) > 3 and {e['message'] for e in found} == {'OutOfMemoryError: out of memory'}


def test_without_a_gpu_it_says_so(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit, match='torch sees no GPU: name --device cpu or --device meta'):
        gpu_check.main([])


CHILD = """
import os, subprocess, sys, time
sys.path[:0] = [{path!r}]
import gpu_check
note, kind = sys.argv[1:]
begun = {{e['check'] for e in gpu_check.gathered(gpu_check.Path(note))}}
gpu_check.LIMIT = 0.5
for check in ('one', 'two', 'three'):
    if check in begun:
        continue
    def act():
        if check == 'two' and kind == 'hangs':
            time.sleep(60)
        if check == 'two' and kind == 'dies':
            os.abort()
        if check == 'two' and kind == 'spoils':
            raise RuntimeError('CUDA error: an illegal memory access')
        return dict(state='passed')
    if not gpu_check.attempt(dict(row='row', check=check, state='not reached'), act, note):
        sys.exit(gpu_check.SPOILED)
if kind == 'stays':
    child = subprocess.Popen(['sleep', '60'])
    print(child.pid, file=open(note + '.pid', 'w'), flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['hangs', 'dies', 'spoils', 'stays'])
def test_a_process_that_hangs_or_dies_costs_one_entry(tmp_path, kind):
    script, note = tmp_path / 'child.py', tmp_path / 'note.jsonl'
    script.write_text(CHILD.format(path=str(Path(gpu_check.__file__).parent)))
    watch = gpu_check.Watch(lambda: None)
    began = time.time()
    watch.run([([sys.executable, str(script), str(note), kind], note)], began + (60 if kind == 'stays' else 240))
    found = {e['check']: e for e in gpu_check.gathered(note)}
    assert [found[c]['state'] for c in ('one', 'three')] == ['passed', 'passed'] and not watch.alive
    if kind == 'stays':  # until the time is over; what it started ends with it
        child = Path('/proc') / (tmp_path / 'note.jsonl.pid').read_text().strip() / 'stat'
        assert not child.exists() or child.read_text().split()[2] == 'Z'
    else:
        assert found['two']['state'] == 'failed'
        assert ('CUDA error' if kind == 'spoils' else 'did not end') in found['two']['message']


def test_a_process_that_cannot_begin_is_named(tmp_path):
    note = tmp_path / 'methods0.jsonl'
    gpu_check.Watch(lambda: None).run([([sys.executable, '-c', 'raise SystemExit(1)'], note)], time.time() + 60)
    entry, = gpu_check.gathered(note)
    assert (entry['check'], entry['state']) == ('methods0', 'failed') and 'ended with status 1' in entry['message']


def test_lines_that_a_kill_cut_are_left_out(tmp_path):
    note = tmp_path / 'note.jsonl'
    gpu_check.noted(str(note), dict(row='a', check='b', state='running'))
    with note.open('a') as file:
        file.write('{"row": "a", "che')
    entry, = gpu_check.gathered(note)
    assert entry['state'] == 'failed' and 'did not end' in entry['message']


@pytest.mark.slow
def test_ended_half_way_it_leaves_a_table(tmp_path):
    """By SIGTERM, as a scheduler ends a job; nothing that it started lives on."""
    command = [sys.executable, gpu_check.__file__, '--device', 'cpu', '--few', '--minutes', '3', '--out', str(tmp_path)]
    check = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 100
    while not any('"passed"' in file.read_text() for file in tmp_path.glob('methods*.jsonl')):
        assert time.monotonic() < end and check.poll() is None
        time.sleep(0.2)
    children = Path(f'/proc/{check.pid}/task/{check.pid}/children').read_text().split()
    check.terminate()
    assert check.wait(60) != 0 and children
    assert not any(Path('/proc', child).exists() for child in children)
    result = json.loads((tmp_path / 'gpu_check.json').read_text())
    assert any(entry['state'] == 'passed' for entry in result['methods'])
    assert any(entry['state'] != 'passed' for entry in result['methods'])
    assert '## Not measured' in (tmp_path / 'gpu_check.md').read_text()
