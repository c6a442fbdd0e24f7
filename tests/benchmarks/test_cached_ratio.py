# SPDX-License-Identifier: Apache-2.0
"""The tool that sets a cached training step against the whole one, at toy size."""

import argparse
import importlib.util
import sys
from pathlib import Path

import pytest
import torch

spec = importlib.util.spec_from_file_location('cached_ratio', Path(__file__).parents[2] / 'benchmarks/cached_ratio.py')
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

TINY = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64)


def measured(petl, **options):
    args = argparse.Namespace(arch=TINY, img_size=32, batch=2, steps=2, **options)
    return tool.measure(petl, args, torch.device('cpu'))


@pytest.mark.parametrize('name', ['linear probe', 'SynQT, P=4', 'VQT, P=1'])
def test_both_steps_train_alike_and_are_timed(name):
    row = measured(tool.METHODS[name])
    assert row['uncached'] > 0 and row['cached'] > 0 and row['spread'][0] <= row['ratio'] <= row['spread'][1]
    # The class token; keys and values of 2 blocks and 5 tokens; these and the last block's output.
    assert row['bytes'] == 4 * 32 * {'linear probe': 1, 'SynQT, P=4': 2 * 2 * 5, 'VQT, P=1': 2 * 2 * 5 + 5}[name]


def test_steps_that_do_not_train_alike_are_refused(monkeypatch):
    store = tool.FeatureStore
    monkeypatch.setattr(store, 'fetch', lambda self, rows, reuse, real=store.fetch: [t + 1 for t in real(self, rows)])
    with pytest.raises(RuntimeError, match='step 0: loss'):
        measured([])


def test_command_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tool, 'measure', lambda petl, args, device: dict(
        uncached=2., cached=0.25, ratio=8., spread=(7., 9.), bytes=2**20, place='device'))
    monkeypatch.setattr(sys, 'argv', ['cached_ratio.py', '--methods', 'SynQT, P=16', '--out', str(tmp_path / 'r.json')])
    tool.main()
    out = capsys.readouterr().out
    assert 'ViT-base/16 at 224 px' in out and '8.0' in out and '(7.0-9.0)' in out and '1.000 MiB' in out and (
        tmp_path / 'r.json').is_file()
