# SPDX-License-Identifier: Apache-2.0
"""Rows of the target table, and comparisons with peers at tiny size."""

import sys
from pathlib import Path

import pytest
import torch
from cases import VIT_ARCH

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))
import benchmark_peers  # noqa: E402
import benchmark_targets  # noqa: E402


def test_rows_say_whether_a_target_is_met():
    row = benchmark_targets.row
    values = (dict(standard=1., light=2.), dict(standard=1.1, light=1.), dict(standard=1.1, light=1.1,
                                                                              lightest=0.9), 1.1)
    assert [row('w', 1., v)['met'] for v in values] == ['met', 'met by light', 'met by lightest', 'missed']
    assert row('w', 80., dict(standard=81.25, light=70., plain=100.), '.1f', ' MiB') == dict(
        work='w', target='≤ 80 MiB', standard='81.2 MiB', light='70.0 MiB', lightest='–', met='met by light', note='')
    assert row('w', 1., 0.5, times=dict(median=0.5, low=0.4, high=0.6))['standard'] == '0.50 (0.40-0.60)'


def test_pruned_model_on_the_meta_device_has_the_shapes_of_a_real_one(monkeypatch):
    petl = dict(type='E2VPT', num_tokens=6, num_kv_tokens=2, segments=4)
    build = benchmark_targets.build
    monkeypatch.setattr(benchmark_targets, 'build',
                        lambda kind, row, memory: build(kind, dict(tiny=row['petl']), 'tiny', memory))
    real = benchmark_targets.pruned(petl)
    with benchmark_targets.on_meta():
        meta = benchmark_targets.pruned(petl)
        assert meta(torch.empty(2, 3, 32, 32))[0].shape == (2, 32)
    shapes = [{n: tuple(p.shape) for n, p in m.named_parameters()} for m in (real, meta)]
    assert shapes[0] == shapes[1] and shapes[0]['petl.e2vpt.prompts.0'] == (3, 32)
    assert [t.num_prompts for t in meta.petl.taps] == [3, 3, 3]


def test_trunks_have_the_same_weights_and_outputs():
    models = benchmark_peers.trunk_models('vit', dict(arch=VIT_ARCH, img_size=32, patch_size=8))
    x = torch.randn(2, 3, 32, 32)
    expected = models['upstream'](x)[0]
    for name in ('empty', 'merged'):
        torch.testing.assert_close(models[name](x)[0], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.peers
def test_peft_trains_as_many_parameters():
    pytest.importorskip('peft')
    pytest.importorskip('transformers')
    with benchmark_peers.on_meta():
        ours, theirs = benchmark_peers.our_lora(), benchmark_peers.peft_model()
    trained = [sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (ours, theirs)]
    assert trained == [294_912, 294_912]


def test_a_missing_package_is_named():
    assert benchmark_peers.missing('torch') is None
    assert benchmark_peers.missing('torch', 'no_such_package') == (
        'left out, not installed: no_such_package (pip install no_such_package)')
