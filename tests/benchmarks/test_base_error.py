# SPDX-License-Identifier: Apache-2.0
"""What a base in fewer bits loses, as its command measures it."""

import importlib
import sys
from pathlib import Path

import torch
from mmengine.config import Config
from toy_model import write_base, write_config

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))
base_error = importlib.import_module('base_error')


def test_fewer_bits_lose_more(tmp_path, monkeypatch):
    write_base(tmp_path)
    config = write_config(tmp_path, [])
    config.write_text(config.read_text() + "\nmodel.update(data_preprocessor=dict(type='ClsDataPreprocessor'))\n")
    monkeypatch.setattr(base_error, 'pictures', lambda cfg, number: torch.randn(number, 3, 32, 32))
    found = {f['base_dtype']: f for f in base_error.measure(str(config), 2)}
    lost = [found[name]['difference'] for name in ('float32', 'bf16', 'int8', 'nf4')]
    assert lost[0] == 0 and 0 < lost[1] and 0 < lost[2] < lost[3] < 1
    assert found['float32']['mib'] > found['bf16']['mib'] > found['int8']['mib'] > found['nf4']['mib']


def test_pictures_of_a_test_set(tmp_path):
    import toy_run
    cfg = Config.fromfile(toy_run.write(tmp_path))
    cfg.test_dataloader.dataset.type = 'mmpretrain.CustomDataset'
    assert base_error.pictures(cfg, 3).shape == (3, 3, 16, 16)


def test_the_page_holds_every_form():
    text = base_error.PAGE.read_text()
    table = text.partition(base_error.MARKS[0])[2].partition(base_error.MARKS[1])[0]
    assert [name for name in ('float32', 'bf16', 'int8', 'nf4') if f'| {name} |' in table] == ['float32', 'bf16', 'int8', 'nf4']
