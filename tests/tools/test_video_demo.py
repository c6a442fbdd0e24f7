# SPDX-License-Identifier: Apache-2.0
"""The video demo's configs, its report and its script's refusals; training itself is what the script does."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch
from cases import real_size
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import MODELS, init_default_scope

import mmpetl  # noqa: F401
from mmpetl.weights import adapter_file

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / 'configs/video_demo').glob('*.py'))
METHODS = ['apt', 'full', 'linear', 'lora', 'lora_untimed', 'patt_adaptformer']


@pytest.fixture(scope='module')
def report():
    spec = importlib.util.spec_from_file_location('video_demo_report', ROOT / 'tools/video_demo_report.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_methods_are_labelled(report):
    assert [path.stem for path in CONFIGS] == METHODS == sorted(report.LABELS)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_configs(path):
    cfg = Config.fromfile(path)
    init_default_scope('mmaction')
    with real_size():
        model = MODELS.build(cfg.model)
    stated = int(re.search(r'^Trainable: ([\d,]+)', path.read_text(), re.M)[1].replace(',', ''))
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == stated
    assert f'configs/video_demo/{path.name}' in path.read_text()
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert 'Flip' not in [t.type for t in loader.dataset.pipeline], 'a flip turns left into right'
        Compose(loader.dataset.pipeline)


@pytest.fixture
def runs(tmp_path):
    """Two runs as training and testing leave them, on 8 videos."""
    (tmp_path / 'test.csv').write_text(''.join(f'{i}.mp4 {i % 6}\n' for i in range(8)))
    for name, accuracy in (('linear', .5), ('lora', .75)):
        run = tmp_path / name
        run.mkdir()
        Config(dict(test_dataloader=dict(dataset=dict(data_root=str(tmp_path), ann_file='test.csv')))).dump(
            run / f'{name}.py')
        (run / 'test.json').write_text(
            json.dumps({
                'acc/top1': accuracy,
                'acc/view_top1': accuracy - .1,
                'acc/group_top1': .9
            }))
        (run / 'seconds').write_text('12\n')
        tensors = {'cls_head.fc_cls.weight': torch.zeros(2, 8), 'backbone.petl.lora.x': torch.zeros(5)}
        adapter_file.save(
            run / 'adapter.safetensors', tensors,
            dict(
                methods=[],
                tune=[],
                trunk='eval',
                backbone='VisionTransformer',
                head=['cls_head.fc_cls.weight'],
                counts=dict(petl=5, tuned=0, head=16, total=21, base=2100),
                base=dict(id=None, checkpoint=None, fingerprint=None)))
    return tmp_path


def test_report(report, runs, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['video_demo_report.py', str(runs), 'linear', 'lora'])
    assert report.main() == 0
    printed = capsys.readouterr().out
    assert '75.0% ± 15.3%' in printed and '65.0%' in printed and '8 test clips' in printed
    lora = json.loads((runs / 'results.json').read_text())['runs'][1]
    assert lora['method'] == 'LoRA' and lora['trainable'] == 21 and lora['test_videos'] == 8 and lora[
        'motion_axis'] == .9
    assert cv2.imread(str(runs / 'accuracy_over_parameters.png')).shape[0] > 400


def test_report_names_what_is_missing(report, runs, monkeypatch, capsys):
    (runs / 'lora/seconds').unlink()
    monkeypatch.setattr(sys, 'argv', ['video_demo_report.py', str(runs), 'linear', 'lora'])
    assert report.main() == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and 'lora/seconds does not exist: run bash tools/video_demo.sh' in error


def test_script_refuses_an_unknown_method():
    done = subprocess.run(['bash', str(ROOT / 'tools/video_demo.sh'), 'lorra'], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip() == 'error: unknown method lorra: choose from ' + ' '.join(METHODS)
