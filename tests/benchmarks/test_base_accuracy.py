# SPDX-License-Identifier: Apache-2.0
"""The table of accuracies on a base in fewer bits: its rows, and the configs that are trained for it."""

import importlib
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))
base_accuracy = importlib.import_module('base_accuracy')
benchmark_methods = importlib.import_module('benchmark_methods')


def test_differences_are_taken_within_seeds():
    """Runs of 80, 90, 85 and 81, 91, 86: a point apart in each, whatever their spread."""
    found = {'float32': {'0': 80., '1': 90., '2': 85.}, 'int8': {'2': 86., '0': 81., '1': 91.}, 'nf4': {'0': 70., '1': 80.}}
    rows = {row[0]: row[1:] for row in base_accuracy.rows(found, {'float32': 20., 'int8': 21.})}
    # t of two degrees of freedom: 4.303 * 5 / sqrt(3)
    assert rows['float32'] == ['85.0 ± 12.4', '', '80.0, 90.0, 85.0', '20']
    assert rows['int8'][:2] == ['86.0 ± 12.4', '+1.0 ± 0.0']
    assert rows['nf4'] == rows['bf16'] == ['not measured', '', '', '']


@pytest.mark.parametrize('form', base_accuracy.FORMS)
def test_only_the_form_of_the_base_differs(form, tmp_path, monkeypatch):
    monkeypatch.setitem(benchmark_methods.METHODS, form, base_accuracy.method_on(form))
    (tmp_path / 'c.py').write_text(benchmark_methods.config_text(form, search=False))
    (tmp_path / 'lora.py').write_text(benchmark_methods.config_text('LoRA', search=False))
    config, lora = (Config.fromfile(tmp_path / name) for name in ('c.py', 'lora.py'))
    assert config.model.backbone.pop('base_dtype') == (None if form == 'float32' else form)
    assert config.model.backbone.pop('tune', []) == lora.model.backbone.pop('tune', []) == []
    assert config._cfg_dict == lora._cfg_dict
