# SPDX-License-Identifier: Apache-2.0
"""The command that checks a GPU, on the CPU: it ends, and leaves a table and a JSON that say what is so."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'benchmarks'))
import gpu_check  # noqa: E402


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def test_a_few_rows_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, 'shards', lambda args, until: gpu_check.methods(args.device, args.rows[:1], until))
    monkeypatch.setattr(gpu_check, 'BATCHES', dict(vit=64))
    monkeypatch.setattr(gpu_check, 'TIMED', ('LoRA', ))
    assert gpu_check.main(['--device', 'cpu', '--few', '--out', str(tmp_path)]) == 0
    result = json.loads((tmp_path / 'gpu_check.json').read_text())
    assert {e['check'] for e in result['methods']} == set(gpu_check.CHECKS)
    assert all(e['state'] == 'passed' for e in result['methods'])
    assert [e['check'] for e in result['speed']] == ['full', 'LoRA', 'LoRA, plain']
    table = (tmp_path / 'gpu_check.md').read_text()
    assert '| placement | 1 | 0 | 0 |' in table and '| vit | LoRA | 2 |' in table and 'None.' in table


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
