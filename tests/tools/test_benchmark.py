"""The benchmark's static columns against what is known."""

import importlib.util
from pathlib import Path

import pytest
from cases import BACKBONE

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def benchmark():
    spec = importlib.util.spec_from_file_location('benchmark_tool', ROOT / 'tools' / 'benchmark.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_compute_of_vit_base_includes_attention(benchmark):
    full, linear = benchmark.variants(['linear probe'])
    costs = benchmark.static_costs(BACKBONE['vit'], full, 'base', False, 1)
    assert costs['gmac'] == pytest.approx(17.563, abs=1e-3)
    assert costs['parameters'] == 85_798_656
    assert benchmark.static_costs(BACKBONE['vit'], linear, 'base', False, 1)['kept'] == 0


def test_no_bytes_below_the_first_adapted_block(benchmark):
    costs = [benchmark.static_costs(BACKBONE['vit'], dict(petl=[dict(type='LoRA', rank=8, layers=layers)]), 'base', False, 1)['kept']
             for layers in (None, '6-11')]
    assert costs[1] / costs[0] == pytest.approx(0.5, abs=0.02)


def test_unknown_method(benchmark):
    with pytest.raises(SystemExit, match='unknown method'):
        benchmark.variants(['LoRa'])
