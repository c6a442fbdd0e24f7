# SPDX-License-Identifier: Apache-2.0
"""The quickstart's configs, its report and its script's refusals; training itself is what the script does."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

import mmpetl  # noqa: F401
from mmpetl.registry import MODELS
from mmpetl.weights import adapter_file

ROOT = Path(__file__).parents[2]
CONFIGS = {
    'linear': 7_700,
    'lora': 7_700 + 221_184,
    'adaptformer': 7_700 + 595_200,
    'lora_adaptformer': 7_700 + 816_384
}


@pytest.fixture(scope='module')
def report():
    spec = importlib.util.spec_from_file_location('quickstart_report', ROOT / 'tools' / 'quickstart_report.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('name, trainable', CONFIGS.items())
def test_trainable_parameters(name, trainable):
    path = ROOT / 'configs' / 'quickstart' / f'{name}.py'
    cfg = Config.fromfile(path)
    model = MODELS.build({**cfg.model, '_scope_': cfg.default_scope})
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    assert f'{trainable - 7_700 or trainable:,} parameters' in path.read_text()  # what the docstring says


def test_cache_folder_is_one_setting(monkeypatch, tmp_path):
    for value, wanted in ((str(tmp_path), str(tmp_path)), (None, '~/.cache/mmpetl')):
        monkeypatch.setenv('MMPETL_CACHE', value) if value else monkeypatch.delenv('MMPETL_CACHE', raising=False)
        cfg = Config.fromfile(ROOT / 'configs' / 'quickstart' / 'lora.py')
        assert cfg.model.backbone.init_cfg.checkpoint == f'{wanted}/dinov2_vits14.safetensors'
        assert cfg.test_dataloader.dataset.data_root == f'{wanted}/quickdraw20'


@pytest.fixture
def runs(tmp_path):
    """Two runs as training and testing leave them, on 8 images."""
    data = tmp_path / 'data'
    data.mkdir()
    cv2.imwrite(str(data / '0.png'), np.zeros((4, 4), np.uint8))
    (data / 'test.txt').write_text('0.png 0\n' * 8)
    for name, accuracy in (('linear', 50.), ('lora', 75.)):
        run = tmp_path / name
        run.mkdir()
        dataset = dict(
            type='mmpetl.ListDataset', data_root=str(data), ann_file='test.txt', classes=['a', 'b'], pipeline=[])
        cfg = dict(default_scope='mmpretrain', test_dataloader=dict(dataset=dataset))
        Config(cfg).dump(run / f'{name}.py')
        (run / 'test.json').write_text(json.dumps({'accuracy/top1': accuracy}))
        (run / 'seconds').write_text('12\n')
        adapter_file.save(
            run / 'adapter.safetensors', {
                'head.fc.weight': torch.zeros(2, 8),
                'backbone.petl.lora.x': torch.zeros(5)
            },
            dict(
                methods=[],
                tune=[],
                trunk='eval',
                backbone='VisionTransformer',
                head=['head.fc.weight'],
                counts=dict(petl=5, tuned=0, head=16, total=21, base=2100),
                base=dict(id=None, checkpoint=None, fingerprint=None)))
    return tmp_path


def test_report(report, runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['quickstart_report.py', str(runs), 'linear', 'lora', '--task', 'toy'])
    assert report.main() == 0
    printed = capsys.readouterr().out
    assert '75.0%' in printed and 'LoRA is +25.0 points' in printed and '8 test images' in printed
    result = json.loads((runs / 'results.json').read_text())
    assert result['task'] == 'toy' and [r['trainable'] for r in result['runs']] == [21, 21]
    lora = result['runs'][1]
    assert lora['accuracy'] == 0.75 and lora['head'] == 16 and lora['standard_error'] == pytest.approx(
        (0.75 * 0.25 / 8)**0.5)
    assert lora['base'] == 2100 and lora['percent_of_base'] == pytest.approx(1)
    assert lora['adapter_bytes'] == (runs / 'lora' / 'adapter.safetensors').stat().st_size
    picture = cv2.imread(str(runs / 'accuracy_over_parameters.png'))
    assert picture.shape[0] > 400 and len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


@pytest.mark.parametrize('missing', ['lora.py', 'adapter.safetensors', 'test.json', 'seconds'])
def test_report_names_what_is_missing(report, runs, monkeypatch, capsys, missing):
    (runs / 'lora' / missing).unlink()
    monkeypatch.setattr(sys, 'argv', ['quickstart_report.py', str(runs), 'linear', 'lora'])
    assert report.main() == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and str(runs / 'lora' / missing) in error
    assert not (runs / 'results.json').exists()


def test_script_refuses_unknown_data():
    done = subprocess.run(['bash', str(ROOT / 'tools' / 'quickstart.sh'), 'mnist'], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.strip() == 'error: unknown data mnist: choose quickdraw20 or digits10'
