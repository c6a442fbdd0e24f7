# SPDX-License-Identifier: Apache-2.0
import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def load():
    spec = importlib.util.spec_from_file_location('video_throughput', ROOT / 'benchmarks/video_throughput.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_variant_is_measured_against_stock(monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv',
                        ['video_throughput.py', '--rounds', '1', '--size', '32', '--batch', '1', '--depth', '1'])
    assert load().main() == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if 'ms per video' in line]
    assert [line.split(':')[0].strip()
            for line in lines] == ['test, 5 clips x 3 crops'] * 2 + ['training, 2 copies'] * 2 + [
                'step, full', 'step, full', 'step, APT 100', 'step, LoRA 8 on q, v', 'step, linear'
            ]
    assert ['x stock' in line for line in lines] == [False, True] * 2 + [False, True, True, True, True]


def test_both_decode_the_same_views(tmp_path):
    """What is timed is the same work: frames and number of views agree."""
    module = load()
    data = module.datasets([module.make_video(tmp_path)], tmp_path)
    stock, ours = (data[f'test, 5 clips x 3 crops: {who}'][0]['inputs'] for who in ('mmaction2', 'mmpetl'))
    assert stock.shape == ours.shape == (15, 3, 16, 224, 224)
    # mmaction2 rounds the resized width up and gives left, right, middle clip by clip within each crop.
    left = stock.view(3, 5, *stock.shape[1:])[0].float()
    assert (left - ours.view(5, 3, *ours.shape[1:])[:, 0].float()).abs().mean() < 3
    copies = [data[f'training, 2 copies: {who}'][0] for who in ('mmaction2', 'mmpetl')]
    assert [len(c) for c in copies] == [2, 2] and copies[0][0]['inputs'].shape == copies[1][0]['inputs'].shape
