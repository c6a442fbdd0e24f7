# SPDX-License-Identifier: Apache-2.0
"""The data benchmark reads the recipes' pipelines and compares equal work."""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))
import data_throughput  # noqa: E402


def test_both_pipelines_make_the_same_images(tmp_path):
    found = data_throughput.image_datasets(tmp_path, 2)
    stock, ours, cached = (found[name][1]['inputs'] for name in ('vtab: stock', 'vtab: mmpetl', 'vtab cached: mmpetl'))
    assert stock.shape == ours.shape == (3, 224, 224) and ours.equal(cached)
    assert (stock.float() - ours.float()).abs().mean() < 1  # two JPEG decoders
    assert stock.equal(found['vtab, decoded by OpenCV: mmpetl'][1]['inputs'])
    assert found['fgvc: mmpetl'][0]['inputs'].shape == found['fgvc: stock'][0]['inputs'].shape == (3, 224, 224)


def test_every_recipe_names_a_config_and_a_measured_pipeline():
    for data, *_ in data_throughput.RECIPES.values():
        assert data_throughput.pipeline_of(data_throughput.CONFIGS[data])


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data_throughput, 'make_video', lambda folder: folder)
    monkeypatch.setattr(data_throughput, 'video_datasets', lambda videos, folder: {})
    monkeypatch.setattr(
        sys, 'argv', ['data_throughput.py', '--rounds', '1', '--images', '2', '--skip-steps', '--out',
                      str(tmp_path)])
    data_throughput.main()
    (path, ) = tmp_path.glob('*/data.json')
    rows = dict(json.loads(path.read_text())['tables'][0]['rows'])
    assert list(rows) == ['vtab', 'vtab, decoded by OpenCV', 'vtab cached', 'fgvc'] and float(
        rows['vtab cached'].split()[0]) > 1.5
    assert 'over stock' in capsys.readouterr().out
