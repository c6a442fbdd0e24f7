# SPDX-License-Identifier: Apache-2.0
"""Mixed batches against peft's and against merged models: equal outputs, and kernels that do not grow."""

import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))
mixed_batches = importlib.import_module('mixed_batches')


#: requirements/constraints.txt has peft from Python 3.11 on; there its absence is a fault and no reason to skip.
WITHOUT = sys.version_info < (3, 11) and importlib.util.find_spec('peft') is None


@pytest.mark.peers
@pytest.mark.skipif(WITHOUT, reason='peft, against which is measured, is not installed for this Python')
def test_equal_outputs_and_fewer_kernels():
    found = {f['adapters']: f for f in mixed_batches.measure('toy', [2, 8], batch=8, rounds=1, disk=True)}
    for result in found.values():
        assert max(result['differences'].values()) < 1e-5
        assert result['from_disk'] > 1 and set(result['samples_per_second']) == {'ours', 'peft', 'merged', 'base'}
    two, eight = found[2]['kernels'], found[8]['kernels']
    assert eight['ours'] <= two['ours'] and eight['peft'] > 2 * two['peft'] and eight['merged'] > 3 * two['merged']
    assert eight['ours'] < 2 * eight['base'] and eight['ours'] < eight['merged'] and eight['ours'] < eight['peft']


@pytest.mark.peers
@pytest.mark.skipif(WITHOUT, reason='peft, against which is measured, is not installed for this Python')
def test_the_command_writes_the_page(tmp_path, monkeypatch, capsys):
    page = tmp_path / 'page.md'
    page.write_text('\n'.join(('before', *mixed_batches.MARKS, 'after')))
    monkeypatch.setattr(mixed_batches, 'PAGE', page)
    monkeypatch.setattr(mixed_batches, 'ROOT', tmp_path)
    words = ['--size', 'toy', '--batch', '2', '--adapters', '2', '--steps', '1', '--write', '--out', str(tmp_path)]
    monkeypatch.setattr(sys, 'argv', ['mixed_batches.py', *words])
    mixed_batches.main()
    text = page.read_text()
    assert text.startswith('before\n<!--') and text.endswith('-->\nafter') and '| 2 |' in text and 'ViT toy' in text


def test_the_page_is_of_the_real_size():
    """The table in the docs is of ViT-B and has all forms; it is written by the command."""
    text = mixed_batches.PAGE.read_text()
    table = text.partition(mixed_batches.MARKS[0])[2].partition(mixed_batches.MARKS[1])[0]
    header, _ = mixed_batches.table([])
    assert 'ViT base' in table and '| ' + ' | '.join(header) + ' |' in table
    assert [line.split('|')[1].strip() for line in table.splitlines() if line.startswith('| ')][1:] == ['2', '8']
