# SPDX-License-Identifier: Apache-2.0
"""The benchmark's columns against closed formulas and what is known; its files and its page."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from cases import BACKBONE

import mmpetl

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))
import benchmark  # noqa: E402
import benchmark_costs  # noqa: E402
import benchmark_report  # noqa: E402

C, F, N, L, H = 768, 3072, 197, 12, 12


def costs(row, **options):
    return benchmark.static_costs(BACKBONE['vit'], row, 'base', options.get('memory', 'standard'),
                                  options.get('batch', 1))


@pytest.fixture(scope='module')
def full():
    return costs(dict(tune=['*']))


def test_operations_of_vit_base_by_closed_formula(full):
    embed = 2 * 196 * 768 * C
    linear = 2 * N * (4 * C * C + 2 * C * F)  # q k v proj, fc1, fc2
    attention = 2 * 2 * N * N * C
    assert full['plain_forward'] == embed + L * (linear + attention) >= full['forward']
    # Every product has two gradients, the patch embedding only that of its weight.
    assert full['plain_backward'] == embed + 2 * L * (linear + attention) >= full['backward']
    assert full['parameters'] == 85_798_656


def test_operations_of_lora_by_closed_formula(full):
    found = costs(dict(petl=[dict(type='LoRA', rank=8)]))
    low_rank = 2 * 2 * N * 2 * C * 8
    assert found['plain_forward'] == full['plain_forward'] + L * low_rank
    assert full['forward'] < found['forward'] <= full['forward'] + L * low_rank
    # No weight gradient of the base; below the first block's attention no input gradient, and none of its keys.
    trunk = L * (2 * N * (4 * C * C + 2 * C * F) + 2 * 4 * N * N * C) - 2 * N * 3 * C * C - 2 * N * N * C
    assert found['plain_backward'] == trunk + 2 * L * low_rank - 2 * N * 2 * C * 8 >= found['backward']


def test_kept_bytes_of_plain_full_fine_tuning_by_closed_formula(full):
    tokens = 4 * N * C
    patches = 4 * 196 * 768  # the patch embedding reads the image itself, which is not counted
    # Inputs of two norms, their outputs (inputs of qkv and fc1), copies of q, k, v, attention output; GELU's input and
    # output: 4 C each.
    block = tokens * (2 + 2 + 3 + 1 + 4 + 4) + 4 * H * N * N + 2 * 2 * 4 * N
    final = tokens + 2 * 4 * N
    assert full['plain_kept'] == pytest.approx(L * block + final, abs=patches)


def test_published_figures_of_kept_bytes():
    """MiB of a batch of 8, explicit attention, with a head of 100 classes: measured on independent code."""
    head = 8 * N * C * 4 / 2**20  # reading the class token keeps all of them
    for petl, mib in (([dict(type='AdaptFormer', mid_dims=64)], 641.4 - head), ([dict(type='SSF')], 1297.4 - head),
                      ([dict(type='VPT',
                             num_tokens=50)], 907.0 - head), ([dict(type='SynQT', num_tokens=16,
                                                                    drop_dead=False)], 234.5)):
        with benchmark.on_meta():
            form = benchmark.plain(benchmark.build(BACKBONE['vit'], dict(petl=petl))).train()
            assert benchmark.saved_bytes(form, torch.empty(8, 3, 224, 224)) / 2**20 == pytest.approx(
                mib, rel=0.005), petl


def test_nothing_is_kept_below_the_first_adapted_block():
    kept = []
    for petl in ([], [dict(type='LoRA', rank=8, layers='6-11')], [dict(type='LoRA', rank=8)]):
        with benchmark.on_meta():
            kept.append(
                benchmark.saved_bytes(benchmark.build(BACKBONE['vit'], dict(petl=petl)), torch.empty(1, 3, 224, 224)))
    assert kept[0] == 0 and 0.45 < kept[1] / kept[2] < 0.51


def test_recomputing_keeps_less_and_computes_more(full):
    levels = [full, *(costs(dict(tune=['*']), memory=memory) for memory in ('light', 'lightest'))]
    kept, computed = ([level[key] for level in levels] for key in ('kept', 'backward'))
    assert kept[0] > kept[1] > kept[2] and computed[0] <= computed[1] < computed[2]


def test_unknown_method():
    with pytest.raises(SystemExit, match='unknown method'):
        benchmark.variants(['LoRa'])


def test_run_and_page(tmp_path, monkeypatch, capsys):
    options = '--sizes tiny --methods VPT --memory light --steps 1 --batch 1 --backbones vit video_swin --timed vit'
    monkeypatch.setattr(sys, 'argv', ['benchmark.py', *options.split(), '--out', str(tmp_path)])
    benchmark.main()
    assert 'step of plain' in capsys.readouterr().out
    (path, ) = tmp_path.glob('*/methods.json')
    found = json.loads(path.read_text())
    assert [r['name'] for r in found['backbones']['vit']['rows']] == ['full', 'full light', 'VPT', 'VPT light']
    assert [r['name'] for r in found['backbones']['video_swin']['rows']] == ['full', 'full light']
    for row in found['backbones']['vit']['rows']:
        assert row['time_of_full']['low'] <= row['time_of_full']['median'] <= row['time_of_full']['high']
        assert row['time_of_plain']['median'] > 0
    assert len({r['plain_kept'] for r in found['backbones']['vit']['rows']}) == 2  # full, VPT
    assert 'time_of_full' not in found['backbones']['video_swin']['rows'][0]
    assert found['hardware']['torch'] == torch.__version__ and path.with_name(
        'kept_over_parameters.png').stat().st_size > 10_000
    page = benchmark_report.write_docs(tmp_path, tmp_path / 'page.md').read_text()
    assert f'torch {torch.__version__}, mmpetl {mmpetl.__version__}' in page and page.count('| VPT |') == 1 and 'ms' not in page.split(
        '### Every method')[1]
    (stored, ) = (tmp_path / 'page').glob('*/methods.json')
    assert [row[0] for row in json.loads(stored.read_text())['tables'][0]['rows']] == ['full', 'full light', 'VPT',
                                                                                      'VPT light']
    assert f'({stored.relative_to(tmp_path)})' in page


def test_the_page_is_of_the_tables_beside_it():
    page = ROOT / 'docs/benchmarks.md'
    folders = sorted({f.parent for f in page.with_suffix('').glob('*/*.json')})
    text = page.read_text(encoding='utf-8')
    assert text == benchmark_report.page_of(folders) and len(text.splitlines()) <= 82
    for link in re.findall(r'\]\(([^)]+)\)', text):
        assert (page.parent / link).is_file(), link


def test_what_the_page_says_of_synqt_is_counted():
    full, row = benchmark_costs.variants(['SynQT'])
    whole = costs(full, batch=8)['kept']
    shares = [costs(row, memory=memory, batch=8)['kept'] / whole for memory in ('standard', 'light')]
    assert "keeps {:.3f} of full, with `memory='light'` {:.3f}".format(*shares) in benchmark_report.HEAD


def test_page_without_results(tmp_path):
    with pytest.raises(SystemExit, match='no results below'):
        benchmark_report.write_docs(tmp_path, tmp_path / 'page.md')


def test_rounds_are_interleaved():
    order = []
    found = benchmark_costs.interleave({name: (lambda name=name: order.append(name)) for name in 'ab'}, 2)
    assert order == ['a', 'b'] * 3 and [len(v) for v in found.values()] == [2, 2]
    assert benchmark_costs.ratio([2., 3., 8.], [1., 1., 2.]) == dict(median=3., low=2., high=4.)


def test_trunks_are_shared():
    models = [benchmark_costs.build(BACKBONE['vit'], dict(tiny=[dict(type='LoRA', rank=2)]), 'tiny') for _ in range(2)]
    models.append(benchmark_costs.build(BACKBONE['vit'], dict(tune=['*bias*']), 'tiny'))
    benchmark_costs.share_trunk(models)
    weights = [m.layers[0].attn.qkv.weight.data_ptr() for m in models]
    biases = [m.layers[0].attn.qkv.bias.data_ptr() for m in models]
    assert len(set(weights)) == 1 and biases[0] == biases[1] != biases[2]
    assert models[0].petl.lora.blocks['0']['q'].down.data_ptr() != models[1].petl.lora.blocks['0']['q'].down.data_ptr()


def test_columns_of_kernels():
    """Ours, plain and full, as benchmarks/kernels.json holds them; a row without a plain form, one of a memory setting."""
    torch.set_num_threads(1)
    stored = json.loads((ROOT / 'benchmarks' / 'kernels.json').read_text())['vit: LoRA']
    row = next(row for row in benchmark_costs.variants(['LoRA']) if row['name'] == 'LoRA')
    found = benchmark.kernel_counts(BACKBONE['vit'], row)
    ours, plain = found['kernels'], found['plain_kernels']
    assert ours['forward'] + ours['backward'] <= 1.05 * stored['kernels'] and ours['syncs'] == 0
    assert plain['forward'] + plain['backward'] == pytest.approx(stored['plain'], rel=0.05)
    full = dict(forward=10, backward=20, casts=1, syncs=0)
    own = dict(forward=6, backward=9, casts=2, syncs=0)
    assert benchmark_report.kernel_cells(dict(kernels=own, plain_kernels=full), full) == [
        '6', '9', '2', '0', '10', '20', '1', '0', '0.50', '0.50']
    assert benchmark_report.kernel_cells(dict(kernels=own, plain_kernels=None), full)[-2:] == ['–', '0.50']
    assert set(benchmark_report.kernel_cells(dict(kernels=None), full)) == {'–'}
