# SPDX-License-Identifier: Apache-2.0
"""Kernels of a training step do not grow: counts of every row of the table against those that are stored."""

import json
import sys
from pathlib import Path

import pytest
import torch
from cases import BACKBONE, CASE, SIDE

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'benchmarks'))
import kernels  # noqa: E402

STORED = json.loads(kernels.RESULTS.read_text(encoding='utf-8'))
SHARD = [name for name in STORED if name.split(': ')[1] in ('LoRA', 'AdaptFormer', 'PATT', 'SSF', 'SynQT', 'APT')]


def check(name):
    backbone, method = name.split(': ')
    row, = (row for row in kernels.rows_of(backbone) if row['name'] == method)
    ours, _ = kernels.counted(BACKBONE[backbone], row)
    stored = STORED[name]
    message = f'{name}: {ours.total} kernels and {ours.casts} casts; stored {stored}: python benchmarks/kernels.py --write'
    # Versions of torch differ by a few.
    assert ours.total <= stored['kernels'] * 1.05 and ours.casts <= stored['casts'] * 1.05 + 2, message
    assert ours.syncs == 0, f'{name}: {ours.syncs} synchronisations'
    there, _ = kernels.counted(BACKBONE[backbone], row, gpu=True)
    message = f'{name}: {there.total} kernels and {there.casts} casts with the lists of a GPU; stored {stored}'
    assert there.total <= stored['gpu_kernels'] * 1.05 and there.casts <= stored['gpu_casts'] * 1.05 + 2, message


#: Full fine-tuning has no frozen weights; a CPU attends in float32 where attention's own dropout is asked for.
UNBOUND = ('full', kernels.DROPOUTS)


@pytest.mark.parametrize('lists', ['', 'gpu_'])
@pytest.mark.parametrize('backbone', list(kernels.ENTRY))
def test_casts_beyond_those_of_the_frozen_base(backbone, lists):
    """At most two per block, and two per method and step: its parameters, and their gradients. By the stored counts, on a
    CPU and with the lists of a GPU."""
    casts = f'{lists}casts'
    blocks, base = len(BACKBONE[backbone].build().petl.blocks), STORED[f'{backbone}: {kernels.PASSED}'][casts]
    rows = {name.split(': ')[1]: row for name, row in STORED.items() if name.startswith(f'{backbone}: ')}
    over = {}
    for name, row in rows.items():
        methods = len(CASE[name].petl) if name in CASE else 0
        if name not in UNBOUND and row[casts] - base > 2 * blocks + 2 * methods:
            over[name] = (row[casts] - base - 2 * methods) / blocks
    assert len(rows) > 20 and not over, over


@pytest.mark.parametrize('lists', ['', 'gpu_'])
def test_fewer_kernels_than_the_plain_form(lists):
    """At most 0.8, SynQT 0.4; no plain form is written out where none is stored."""
    count, plain = f'{lists}kernels', f'{lists}plain'
    rows = {name: row for name, row in STORED.items() if row[plain] and name.split(': ')[1] in CASE}
    over = {name: row[count] / row[plain] for name, row in rows.items()
            if row[count] > (0.4 if name.endswith(': SynQT') else 0.8) * row[plain]}
    assert len(rows) > 100 and not over, over


def test_what_the_card_of_synqt_says_is_stored():
    text = ' '.join((kernels.RESULTS.parents[1] / 'docs/methods/synqt.md').read_text(encoding='utf-8').split())
    on = ('vit', 'clip', 'videomae')
    ratios = [f'{row["kernels"] / row["full"]:.2f}' for method in ('SynQT', kernels.DROPOUTS)
              for row in (STORED[f'{backbone}: {method}'] for backbone in on)]
    upstream = [STORED[f'{backbone}: SynQT']['kernels'] / STORED[f'{backbone}: full']['plain'] for backbone in on]
    assert max(upstream) <= 1.5, upstream
    words = '{:.2f} of full fine-tuning as mmpretrain runs it on ViT, {:.2f} on CLIP, {:.2f} on VideoMAE as mmaction2 runs it'
    assert words.format(*upstream) in text
    there = [STORED[f'{backbone}: SynQT']['gpu_kernels'] / STORED[f'{backbone}: full']['gpu_plain'] for backbone in on]
    assert "a GPU's autocast, whose norms give float32, ours are as many and upstream's more" in text
    assert all(row['gpu_kernels'] == row['kernels'] for row in (STORED[f'{backbone}: SynQT'] for backbone in on))
    assert '{:.2f}, {:.2f} and {:.2f} of theirs'.format(*there) in text
    assert 'of that, {}, {} and {}; with the default dropouts {}, {} and {} on a CPU'.format(*ratios) in text


def test_a_stored_base_casts_no_frozen_weight():
    """One kernel per block casts the weights of a float32 base, with a side method one for all; a stored one needs none
    of them."""
    rows = {name: row for name, row in STORED.items() if 'stored_casts' in row and name != 'vit: full'}
    blocks = len(BACKBONE['vit'].build().petl.blocks)
    saved = {name: row['casts'] - row['stored_casts'] for name, row in rows.items()}
    sides = [name for name in saved if name.split(': ')[1] in (*SIDE, kernels.DROPOUTS)]
    assert len(sides) == len(SIDE) + 1 and all(saved.pop(name) >= 1 for name in sides)
    assert len(saved) > 40 and all(count >= blocks for count in saved.values())


@pytest.mark.parametrize('name', SHARD)
def test_kernels_do_not_grow(name):
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize('name', [name for name in STORED if name not in SHARD])
def test_kernels_of_the_other_rows_do_not_grow(name):
    check(name)


def test_every_row_is_stored():
    assert {f'{b}: {row["name"]}' for b in kernels.ENTRY for row in kernels.rows_of(b)} == set(STORED)


def test_what_counts():
    """Views and empty memory are free; casts and synchronisations are told apart."""
    x = torch.randn(4, 4, requires_grad=True)

    def step():
        y = x.view(-1)[:4].detach() * 1  # one
        z = (x @ x).to(torch.bfloat16)  # product and cast
        float(y[0])  # a synchronisation
        return z.float().sum() + torch.empty(3).numel()  # cast, sum, sum of a number

    found = kernels.count(step)
    assert found.syncs == 1 and found.forward == 6 and found.by_name['mm.default'] >= 1
    assert found.casts >= 3 and found.backward >= 3
