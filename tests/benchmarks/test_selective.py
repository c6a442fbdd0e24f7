# SPDX-License-Identifier: Apache-2.0
"""Torch's selective checkpointing beside ours: the page's table is the stored one, and both give the same gradients."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / 'benchmarks'))

import selective  # noqa: E402


def test_the_page_holds_the_stored_counts():
    rows = json.loads(selective.RESULTS.read_text())['rows']
    assert selective.table(rows) in selective.PAGE.read_text()
    for name, forms in rows.items():
        # what the page says of them
        assert all(forms[ours]['kernels'] < forms[theirs]['kernels'] or name == 'full'
                   for ours, theirs in (('light', 'torch light'), ('lightest', 'torch lightest')))
        assert all(forms['light']['host_ms'] < 0.55 * forms[f'torch {kind}']['host_ms'] for kind in ('light', 'best'))
        assert forms['with_cp']['host_ms'] < min(f['host_ms'] for form, f in forms.items() if form[:5] == 'torch')
        assert forms['with_cp']['kept'] < min(f['kept'] for form, f in forms.items() if form != 'with_cp')


@pytest.mark.parametrize('form', ['light', 'torch products', 'torch light'])
def test_gradients_are_the_same(form):
    row = next(r for r in selective.variants(None) if r['name'] == 'AdaptFormer')
    torch.manual_seed(0)
    model, x = selective.build(selective.BACKBONE['vit'], row, 'tiny'), selective.BACKBONE['vit'].inputs(2)
    with torch.no_grad():
        for p in model.petl.parameters():
            p.normal_(std=0.1)
    found = []
    for each in ('standard', form):
        torch.manual_seed(1)  # of dropout
        with selective.selective(selective.set_form(model, each)) as asked:
            selective.last(model(x)).sum().backward()
        found.append([p.grad.clone() for p in model.petl.parameters()])
        model.zero_grad(set_to_none=True)
        assert bool(asked['times']) == each.startswith('torch')
    assert all(torch.equal(a, b) for a, b in zip(*found)) and any(g.any() for g in found[0])
