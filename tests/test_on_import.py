# SPDX-License-Identifier: Apache-2.0
"""Remedies wait for what they mend; ``import mmpetl`` loads nothing big."""

import importlib
import subprocess
import sys

import pytest

import mmpetl
from mmpetl import on_import


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package ``waited_for`` that nobody has imported, and a watcher that forgets it afterwards."""
    (tmp_path / 'waited_for.py').write_text('import sys\nseen = sys.modules.get("mark")\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    yield 'waited_for'
    sys.modules.pop('waited_for', None)
    sys.modules.pop('mark', None)


def test_before_and_after(package):
    calls = []
    on_import.before_import(package, lambda: sys.modules.__setitem__('mark', calls))
    on_import.after_import(package, lambda: calls.append(sys.modules[package].seen))
    assert calls == [] and 'mark' not in sys.modules
    assert importlib.util.find_spec(package) is not None and calls == []  # looking is not importing
    module = importlib.import_module(package)
    assert module.seen is calls and calls == [calls]  # before the first line of the module, after its last
    importlib.reload(module)
    assert len(calls) == 1


def test_at_once_where_it_is_imported_already():
    calls = []
    on_import.before_import('sys', lambda: calls.append(1))
    on_import.after_import('sys', lambda: calls.append(2))
    assert calls == [1, 2]


def test_importing_costs_nothing():
    code = 'import sys, mmpetl; print(*(n for n in ("torch", "mmengine", "numpy", "transformers") if n in sys.modules))'
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True).stdout == '\n'


def test_what_is_promised_is_there_in_any_order():
    code = """
import sys
first = sys.argv[1]
if first == 'upstream':
    import mmengine.runner
import mmpetl
from mmengine.runner.checkpoint import CheckpointLoader
from mmengine.registry import MODELS, HOOKS
assert CheckpointLoader._schemes[''].__module__ == 'mmpetl.compat.loading'
assert MODELS.get('mmpetl.FeatureHead') is not None and HOOKS.get('mmpetl.AdapterHook') is not None
assert 'mmpetl.compat' in sys.modules
# transformers is imported when its optimizer is asked for, where mmpetl comes first
assert ('transformers' in sys.modules) == (first == 'upstream')
import mmengine.optim, torch
wrapper = mmengine.optim.build_optim_wrapper(torch.nn.Linear(2, 2), dict(optimizer=dict(type='Adafactor')))
assert type(wrapper.optimizer).__module__ == 'transformers.optimization' and len(wrapper.optimizer.param_groups[0]['params']) == 2
assert 'Adafactor' in mmengine.optim.optimizer.builder.TRANSFORMERS_OPTIMIZERS
"""
    for first in ('upstream', 'mmpetl'):
        subprocess.run([sys.executable, '-c', code, first], check=True)


@pytest.mark.parametrize('first', ['mmpetl.compat', 'mmpetl.commands.doctor', 'mmpetl.apis'])
def test_any_module_may_be_the_first(first):
    """Before torch and mmengine, whose import is watched."""
    done = subprocess.run([sys.executable, '-W', 'error:mmpetl', '-c', f'import {first}'], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]


def test_modules_that_were_attributes():
    code = 'import mmpetl; print(mmpetl.registry.METHODS.scope, mmpetl.apis.attach.__name__)'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ['mmpetl', 'attach']


def test_the_face():
    assert {'attach', 'merge', 'AdapterBank', '__version__'} <= set(dir(mmpetl))
    assert all(getattr(mmpetl, name) is not None for name in mmpetl.__all__)
    with pytest.raises(AttributeError, match="no attribute 'atach'"):
        mmpetl.atach  # noqa: B018
