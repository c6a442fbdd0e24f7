# SPDX-License-Identifier: Apache-2.0
"""GLoRA against its formula, in plain NumPy in double precision, for every form of every part."""

import itertools

import numpy as np
import pytest
import torch
from cases import BACKBONE, features, perturb

import mmpetl
from mmpetl.methods.glora import FORMS

RANK = 2


def build(petl, name='vit'):
    torch.manual_seed(0)
    model = BACKBONE[name].build(petl)
    perturb(model, 0.1)
    model.double().train(False)  # which returns nothing
    return model


def full(parts, name, rows, columns):
    """A part as the matrix of the paper, (rows, columns)."""
    form, values = parts.forms[name], {k: v.detach().numpy() for k, v in parts.named_parameters()}
    if form == 'lora':
        assert values[f'{name}_up'].shape == (rows, RANK) and values[f'{name}_down'].shape == (RANK, columns)
        return values[f'{name}_up'] @ values[f'{name}_down']
    whole = np.zeros((rows, columns))
    if form != 'none':
        whole += values[name].reshape(-1, 1)
    return whole


@pytest.mark.parametrize('name', ['vit', 'videomae'])
def test_every_form_is_its_formula(name):
    """VideoMAE has no bias of keys."""
    x = torch.randn(2, 5, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    checked = 0
    for a, b in itertools.product(FORMS['a'], FORMS['b']):
        for c, d, e in zip(('lora', 'vector', 'none'), ('vector', 'scalar', 'none'), ('scalar', 'none', 'vector')):
            if c == d == 'none' and a == b == 'none':
                c = 'vector'
            model = build([dict(type='GLoRA', rank=RANK, a=a, b=b, c=c, d=d, e=e, ops='k,fc1', layers=1)], name)
            method = model.petl['glora']
            for op, rows in (('k', 32), ('fc1', 64)):
                parts, (weight, bias) = method.blocks['1'][op], method.frozen(1, op)
                assert (bias is None) == (name == 'videomae' and op == 'k')
                w, bias = weight.numpy(), np.zeros(rows) if bias is None else bias.numpy()
                big_a, big_b = full(parts, 'a', rows, 32), full(parts, 'b', rows, 32)
                prompt, scale, shift = (full(parts, k, n, 1)[:, 0] for k, n in (('c', 32), ('d', rows), ('e', rows)))
                expected = (x.numpy() @ (w + w * big_a + big_b).T + bias + w @ prompt + scale * bias + shift)
                y = torch.from_numpy(x.numpy() @ w.T + bias)
                assert np.abs(method.on_linear(1, op, x, y).detach().numpy() - expected).max() <= 1e-12
                merged, moved = method.fold(1, op, weight, method.frozen(1, op)[1])
                moved = 0. if moved is None else moved.detach().numpy()
                assert np.abs(x.numpy() @ merged.detach().numpy().T + moved - expected).max() <= 1e-12
                checked += 1
    assert checked == 96


def test_start_and_counts():
    model = build([dict(type='GLoRA', rank=RANK, ops='q,fc2', a=['lora', 'vector', 'none'], b='scalar', c='vector')])
    method = mmpetl.registry.METHODS.build(dict(type='GLoRA', specs=model.petl['glora'].specs, rank=RANK, ops='q'))
    for name, parameter in method.named_parameters():
        assert bool(parameter.any()) == name.endswith('down')
        # Kaiming-uniform with a = sqrt(5): bound 1 / sqrt(columns)
        assert not name.endswith('down') or parameter.abs().max() <= parameter.shape[1]**-0.5
    sizes = {i: {op: sum(p.numel() for p in parts.parameters()) for op, parts in block.items()}
             for i, block in model.petl['glora'].blocks.items()}
    assert sizes['0'] == dict(q=RANK * 64 + 1 + 32 + 32 + 32, fc2=RANK * 96 + 1 + 64 + 32 + 32)
    assert sizes['1'] == dict(q=32 + 1 + 32 + 32 + 32, fc2=32 + 1 + 64 + 32 + 32)
    assert sizes['2'] == dict(q=1 + 32 + 32 + 32, fc2=1 + 64 + 32 + 32)


@pytest.mark.parametrize('forms', [dict(a='vector', b='vector', c='none'), dict(a='none', b='scalar', c='vector', d='scalar'),
                                   dict(a='scalar', b='none', c='lora', d='none', e='none')])
@pytest.mark.parametrize('name', ['vit', 'swin'])
def test_other_forms_train_merge_and_need_no_more_than_bf16(forms, name):
    model, x = build([dict(type='GLoRA', rank=RANK, **forms)], name), BACKBONE[name].inputs(dtype=torch.float64)
    expected = features(model(x))
    expected.square().sum().backward()
    assert all(p.grad is not None for p in model.petl.parameters())
    with torch.autocast('cpu', torch.bfloat16):
        half = features(model.float()(x.float()))
    assert (half - expected).norm() <= 0.1 * expected.norm()
    model.double()
    with torch.no_grad():
        mmpetl.merge(model)
        assert (features(model(x)) - expected).abs().max() <= 1e-5  # the weights have been in float32


@pytest.mark.parametrize('cfg, words', [
    (dict(a='matrix'), "a='matrix' is no form of a: choose from lora, vector, scalar, none"),
    (dict(c='scalar'), "c='scalar' is no form of c"),
    (dict(d=['vector', 'lora', 'none']), "d='lora' is no form of d"),
    (dict(a='none', b='none', c='none', d='none', e=['vector', 'none', 'none']), "all parts of block 1 are 'none'"),
    (dict(rank=0), 'rank must be a whole number'),
])
def test_refusals(cfg, words):
    with pytest.raises(ValueError, match=words) as error:
        BACKBONE['vit'].build([dict(type='GLoRA', **cfg)])
    assert '\n' not in str(error.value)


def test_nothing_may_stand_before_it():
    with pytest.raises(ValueError, match='put GLoRA first'):
        BACKBONE['vit'].build([dict(type='LoRA', ops='q'), dict(type='GLoRA', ops='qv')])
