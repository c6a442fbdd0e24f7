# SPDX-License-Identifier: Apache-2.0
"""Rows of prompts and of tokens share the products of keys and values where methods act on them row by row."""

import pytest
import torch
from cases import BACKBONE, CASE, features, perturb

from mmpetl.backbones import attention


def step(model, x):
    model.zero_grad(set_to_none=True)
    y = features(model(x))
    y.square().sum().backward()
    return [y.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize('name', ['vit', 'videomae'])
@pytest.mark.parametrize('more', ['LoRA', 'FacT-TT', 'VeRA', 'SSF'])
def test_equal_to_products_of_their_own(name, more, monkeypatch):
    backbone, joined = BACKBONE[name], []
    torch.manual_seed(0)
    model = backbone.build([dict(type='VPT', num_tokens=2), *CASE[more].petl], memory='light').double()
    perturb(model)
    model.petl.refresh(), model.eval()
    join = attention._join_rows
    monkeypatch.setattr(attention, '_join_rows', lambda *rows: joined.append(1) or join(*rows))
    x = backbone.inputs(dtype=torch.float64)
    ours = step(model, x)
    assert bool(joined) is (more != 'SSF'), 'methods that do not say so are handed prompts apart'
    for tap in model.petl.taps:
        tap.rowwise = False
    del joined[:]
    apart = step(model, x)
    assert not joined
    for a, b in zip(ours, apart, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)
