# SPDX-License-Identifier: Apache-2.0
"""LoHa and LoKr against their formulas, in plain NumPy in double precision; equality with peft: test_against_peft.py."""

import numpy as np
import pytest
import torch
from cases import BACKBONE, perturb
from torch.utils.flop_counter import FlopCounterMode

from mmpetl.methods.lokr import split
from mmpetl.registry import METHODS
from mmpetl.sites import BlockSpec

SPECS = [BlockSpec(0, 0, 24, 2, 48)]


def build(kind, **options):
    torch.manual_seed(0)
    return METHODS.build(dict(type=kind, specs=SPECS, **options)).double()


def check(method, op, delta):
    """on_linear adds ``delta`` x, and fold adds ``delta`` to the weight."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, delta.shape[1], dtype=torch.float64, generator=generator)
    y = torch.randn(2, 3, delta.shape[0], dtype=torch.float64, generator=generator)
    expected = y.numpy() + np.einsum('oc,bnc->bno', delta, x.numpy())
    assert np.abs(method.on_linear(0, op, x, y).detach().numpy() - expected).max() <= 1e-12
    weight = torch.randn(*delta.shape, dtype=torch.float64, generator=generator)
    folded, bias = method.fold(0, op, weight, None)
    assert bias is None and np.abs(folded.detach().numpy() - weight.numpy() - delta).max() <= 1e-12


@pytest.mark.parametrize('init', ['lycoris', 'kaiming'])
def test_loha_is_its_formula(init):
    method = build('LoHa', rank=3, ops='q,fc1', alpha=6, init=init)
    f = method.blocks['0']['fc1']
    assert not method.delta(0, 'fc1').any(), 'the start is exact'
    if init == 'lycoris':
        assert 0.7 < f.down1.std() < 1.3 and 0.7 < f.down2.std() < 1.3 and 0.07 < f.up1.std() < 0.13 and not f.up2.any()
    assert sum(p.numel() for p in method.parameters()) == 2 * 3 * (24 + 24 + 24 + 48)
    perturb(method, 0.5)
    for op, (n_in, n_out) in (('q', (24, 24)), ('fc1', (24, 48))):
        u1, d1, u2, d2 = (t.detach().numpy() for t in method.blocks['0'][op].factors())
        delta = np.zeros((n_out, n_in))
        for o, c in np.ndindex(n_out, n_in):
            delta[o, c] = 2 * (u1[o] @ d1[:, c]) * (u2[o] @ d2[:, c])
        check(method, op, delta)
        assert np.linalg.matrix_rank(delta) == 9, 'rank squared'


@pytest.mark.parametrize('options, shapes', [
    (dict(rank=2), dict(q=((4, 4), (6, 6)), fc1=((6, 4), (8, 6)))),
    (dict(rank=2, factor=2), dict(q=((2, 2), (12, 12)), fc1=((2, 2), (24, 12)))),
    (dict(rank=1, factor=3, out_factor=4, decompose_both=True), dict(q=((4, 3), (6, 8)), fc1=((4, 3), (12, 8)))),
    (dict(rank=8), dict(q=((4, 4), (6, 6)), fc1=((6, 4), (8, 6)))),
])
def test_lokr_is_its_formula(options, shapes):
    method = build('LoKr', ops='q,fc1', alpha=4, **options)
    rank, count = options['rank'], 0
    for op, (shape_a, shape_b) in shapes.items():
        sides = method.blocks['0'][op]
        a, b = sides['a'].matrix(), sides['b'].matrix()
        assert a.shape == shape_a and b.shape == shape_b
        assert a.any() and not b.any(), 'the start is exact, and both sides get gradients'
        low = [2 * rank < max(shape_a) and options.get('decompose_both', False), 2 * rank < max(shape_b)]
        count += sum(rank * sum(s) if small else s[0] * s[1] for small, s in zip(low, (shape_a, shape_b)))
    assert sum(p.numel() for p in method.parameters()) == count
    perturb(method, 0.5)
    for op in shapes:
        sides = method.blocks['0'][op]
        a, b = (sides[s].matrix().detach().numpy() for s in 'ab')
        delta = np.block([[entry * b for entry in row] for row in a])
        check(method, op, delta * (4 / rank if not (sides['a'].is_whole and sides['b'].is_whole) else 1))


def test_lokr_forms_no_full_update():
    """Multiplications per token, the number of docs/methods/lokr.md."""
    method = METHODS.build(dict(type='LoKr', specs=[BlockSpec(0, 0, 768, 12, 3072)], ops='q'))
    x, y = torch.randn(5, 768), torch.randn(5, 768)
    with FlopCounterMode(display=False) as flops:
        method.on_linear(0, 'q', x, y)
    assert flops.get_total_flops() == 2 * 5 * 16896


@pytest.mark.parametrize('size, factor, expected', [(768, -1, (24, 32)), (768, 8, (8, 96)), (127, -1, (1, 127)),
                                                    (3072, -1, (48, 64)), (36, -1, (6, 6)), (128, 5, (4, 32))])
def test_split(size, factor, expected):
    assert split(size, factor) == expected


@pytest.mark.parametrize('cfg, words', [
    (dict(type='LoHa', init='x'), "init must be 'lycoris' or 'kaiming'"),
    (dict(type='LoHa', rank=0), 'rank must be a whole number'),
    (dict(type='LoKr', factor=0), 'factor and out_factor must be -1'),
])
def test_refusals(cfg, words):
    with pytest.raises(ValueError, match=words) as error:
        BACKBONE['vit'].build([cfg])
    assert '\n' not in str(error.value)
