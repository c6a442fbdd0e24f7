# SPDX-License-Identifier: Apache-2.0
"""mmpetl doctor: what is wrong is named with the command that mends it, and makes the exit status 1."""

import json

import pytest
from mmengine.runner.checkpoint import CheckpointLoader

from mmpetl.commands import doctor
from mmpetl.commands.main import main
from mmpetl.compat import environment

VERSIONS = {'torch': '2.12.1+cpu', 'mmengine': '0.10.6', 'rich': '14.0'}


def test_versions():
    lines = ['torch>=2.11,<2.14', 'mmengine==0.10.7', 'rich', 'einops', "absent; python_version < '3'"]
    found = {f.name: f for f in doctor.version_findings(lines, VERSIONS.get)}
    assert {
        name: f.state
        for name, f in found.items()
    } == {
        'torch': 'ok',
        'mmengine': 'wrong',
        'rich': 'ok',
        'einops': 'wrong'
    }
    assert found['mmengine'].mend == "pip install 'mmengine==0.10.7'"
    assert found['einops'].text == 'not installed'


def test_pins():
    text = '# exact\ntorch===2.12.1; python_version >= "3"\nrich==15.0\nabsent==1\n'
    found = doctor.pin_findings(text, VERSIONS.get)
    assert [(f.state, f.name, f.mend) for f in found] == [('note', 'rich (tested)', 'pip install rich==15.0')]


def test_requirements_are_read():
    names = {f.name for f in doctor.version_findings()}
    assert {'torch', 'mmengine', 'mmpretrain', 'mmaction2', 'safetensors'} <= names


def test_traps_and_status(monkeypatch, capsys):
    monkeypatch.setattr(environment, 'environment_warnings', lambda: ['two things break each other. Run: pip uninstall one'])
    monkeypatch.setattr(doctor, 'import_findings', lambda: [doctor.Finding('ok', 'x', 'can be imported')])
    assert main(['doctor']) == 1
    out = capsys.readouterr().out
    assert 'pip uninstall one' in out and 'wrong' in out
    assert main(['doctor', '--json']) == 1
    trap = next(f for f in json.loads(capsys.readouterr().out) if f['name'] == 'trap')
    assert trap == dict(state='wrong', name='trap', text='two things break each other.', mend='pip uninstall one')
    monkeypatch.setattr(doctor, 'examine', lambda: [doctor.Finding('ok', 'a', 'b'), doctor.Finding('note', 'c', 'd')])
    assert main(['doctor']) == 0
    assert '1 ok, 1 to note, 0 wrong' in capsys.readouterr().out


def test_imports():
    found = doctor.import_findings(('json', 'no_such_package_at_all'))
    assert [f.state for f in found] == ['ok', 'wrong'] and found[1].mend == 'pip install no_such_package_at_all'
    assert all(f.state == 'ok' for f in doctor.import_findings(('mmpetl.backbones', )))


@pytest.mark.parametrize('safe', [True, False])
def test_the_loader_is_tried(safe, monkeypatch):
    if not safe:
        import torch
        schemes = {**CheckpointLoader._schemes, '': lambda name, place: torch.load(name, place, weights_only=False)}
        monkeypatch.setattr(CheckpointLoader, '_schemes', schemes)
    assert doctor._loader().state == ('ok' if safe else 'wrong')


def test_cache_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv('MMPETL_CACHE', str(tmp_path / 'a' / 'b'))
    assert doctor._cache().state == 'ok'
    monkeypatch.setattr(doctor.os, 'access', lambda *_: False)
    assert doctor._cache().state == 'wrong' and 'MMPETL_CACHE' in doctor._cache().mend


@pytest.mark.parametrize('place', ['file', 'file/cache', 'link'])
def test_a_cache_that_is_no_folder(place, monkeypatch, tmp_path):
    (tmp_path / 'file').touch()
    (tmp_path / 'link').symlink_to(tmp_path / 'link')
    monkeypatch.setenv('MMPETL_CACHE', str(tmp_path / place))
    assert doctor._cache().state == 'wrong' and 'MMPETL_CACHE' in doctor._cache().mend
