# SPDX-License-Identifier: Apache-2.0
"""The formulas of docs/scaling.md against what is counted, and the simulation against hand-made cases."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))
import scaling  # noqa: E402

SMALL = {'image': scaling.Size(image=64), 'video': scaling.Size(tubelet=2, frames=4, image=224)}


def test_operations_and_bytes_of_both_kinds():
    assert [row[2] for row in scaling.check_operations(SMALL)] == ['17', '17', '392', '392']
    for row in scaling.check_bytes(SMALL):
        assert float(row[2]) == pytest.approx(float(row[3]), rel=0.02) and float(row[5]) < float(row[3])


def test_a_wrong_formula_is_noticed(monkeypatch):
    monkeypatch.setattr(scaling, 'full_operations', lambda s: (s.embed, s.embed))
    with pytest.raises(AssertionError, match='image, full: formula'):
        scaling.check_operations({'image': SMALL['image']})
    monkeypatch.setattr(scaling, 'full_bytes', lambda s: 1)
    with pytest.raises(AssertionError, match='image: formula 1'):
        scaling.check_bytes({'image': SMALL['image']})


def test_memory_is_a_line_in_the_number_of_tokens(monkeypatch):
    monkeypatch.setattr(scaling, 'METHODS', {k: scaling.METHODS[k] for k in ('full', 'VPT-deep 50')})
    assert [row[0] for row in scaling.check_linear_growth((32, 64, 112))] == ['full', 'VPT-deep 50']


def test_mixed_batches_compute_no_more():
    one, many = scaling.check_mixed()
    assert one == many > 0


def test_simulation_by_hand():
    cluster = scaling.Cluster(flops=1e12, per_node=2, inside=1e9, between=1e8, latency=0., bucket=10**6)
    assert scaling.step_seconds(1e12, 2e12, 10**6, 1, cluster) == 3.
    # One bucket is ready when the backward pass ends; half of its bytes go out, and half of them come back.
    assert scaling.step_seconds(1e12, 2e12, 10**6, 2, cluster) == pytest.approx(3. + 1e-3)
    assert scaling.step_seconds(1e12, 2e12, 10**6, 4, cluster) == pytest.approx(3. + 1.5e-2)
    # Of two buckets the first hides behind the second half of the backward pass.
    assert scaling.step_seconds(1e12, 2e12, 2 * 10**6, 2, cluster) == pytest.approx(3. + 1e-3)
    # Where the network is slower than the backward pass, all buckets but the wait for the first add up.
    assert scaling.step_seconds(1e12, 2e12, 10**9, 4, cluster) == pytest.approx(1. + 2e-3 + 15., rel=1e-3)
    assert scaling.ring_bytes(100, 1) == 0 and scaling.ring_bytes(100, 4) == 150


@pytest.mark.slow
def test_ddp_reduces_the_gradients_of_what_trains_and_nothing_else():
    found = scaling.check_traffic(['full', 'LoRA'])
    assert found['full'][0] > 10 * found['LoRA'][0] > 0
