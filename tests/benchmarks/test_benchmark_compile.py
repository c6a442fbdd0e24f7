# SPDX-License-Identifier: Apache-2.0
"""The comparison with compiled models, without the wait for a compiler."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))
import benchmark_compile  # noqa: E402
import benchmark_report  # noqa: E402

COMMAND = 'benchmark_compile.py --sizes tiny --methods LoRA --backbones vit --steps 1 --batch 1 --out'


def test_run_and_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [*COMMAND.split(), str(tmp_path)])
    compile_ = torch.compile
    monkeypatch.setattr(torch, 'compile', lambda model: compile_(model, backend='eager'))
    benchmark_compile.main()
    assert 'seconds to compile' in capsys.readouterr().out
    (path, ) = tmp_path.glob('*/compile.json')
    (table, ) = json.loads(path.read_text())['tables']
    assert [row[0] for row in table['rows']] == ['LoRA'] and len(table['rows'][0]) == len(table['header'])
    page = benchmark_report.write_docs(tmp_path, tmp_path / 'page.md').read_text()
    assert '### torch.compile' in page and page.count('| LoRA |') == 1


def test_other_outputs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', [*COMMAND.split(), str(tmp_path)])

    class Wrong(torch.nn.Module):

        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            return 2 * benchmark_compile.last(self.model(x))

    monkeypatch.setattr(torch, 'compile', Wrong)
    with pytest.raises(RuntimeError, match='LoRA: compiled outputs differ'):
        benchmark_compile.main()
    assert not list(tmp_path.glob('*/compile.json'))
