# SPDX-License-Identifier: Apache-2.0
"""OFT and BOFT against their formulas, in plain NumPy in double precision; equality with peft: test_against_peft.py."""

import numpy as np
import pytest
import torch
from cases import BACKBONE, perturb

from mmpetl.registry import METHODS
from mmpetl.sites import BlockSpec

SPECS = [BlockSpec(0, 0, 16, 2, 32)]


def build(kind, **options):
    return METHODS.build(dict(type=kind, specs=SPECS, **options)).double()


def skew(upper, size):
    q = np.zeros((size, size))
    q[np.triu_indices(size, 1)] = upper
    return q - q.T


def rotation(upper, size, terms=0):
    q, one = skew(upper, size), np.eye(size)
    if not terms:
        return (one + q) @ np.linalg.inv(one - q)
    powers = [np.linalg.matrix_power(q, k) for k in range(terms)]
    return powers[0] + 2 * sum(powers[1:-1]) + powers[-1]


def x_of(width, seed=1):
    return torch.randn(3, 5, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('share', [False, True])
@pytest.mark.parametrize('terms', [0, 2, 3, 5, 7])
def test_oft_is_its_formula(share, terms):
    method = build('OFT', block_size=4, ops='q,fc2', block_share=share, neumann_terms=terms)
    assert torch.equal(method.on_input(0, 'q', x_of(16)), x_of(16)), 'the start is exact'
    assert sum(p.numel() for p in method.parameters()) == (2 * 6 if share else (4 + 8) * 6)
    perturb(method, 0.1)
    for op, width in (('q', 16), ('fc2', 32)):
        x, upper = x_of(width), method.blocks['0'][op].detach().numpy()
        blocks = [rotation(upper[0 if share else j], 4, terms) for j in range(width // 4)]
        whole = np.zeros((width, width))
        for j, block in enumerate(blocks):
            whole[4 * j:4 * j + 4, 4 * j:4 * j + 4] = block
        got = method.on_input(0, op, x).detach().numpy()
        assert np.abs(got - x.numpy() @ whole).max() <= 1e-12
        weight = x_of(width, seed=2)[0]
        assert np.abs(method.fold_input(0, op, weight).detach().numpy() - weight.numpy() @ whole.T).max() <= 1e-12
        error = np.abs(whole @ whole.T - np.eye(width)).max()
        assert error <= 1e-12 if not terms else error < 1.3**terms * 0.5**terms, 'orthogonal, or nearly so'


@pytest.mark.parametrize('factors', [1, 2, 3])
def test_boft_is_its_formula(factors):
    """Every factor joins the half blocks j and j + 2^(k-1) of each span of 2^k half blocks."""
    method = build('BOFT', block_size=4, factors=factors, ops='q')
    assert torch.equal(method.on_input(0, 'q', x_of(16)), x_of(16)), 'the start is exact'
    assert sum(p.numel() for p in method.parameters()) == factors * 4 * 6 + 16
    perturb(method, 0.2)
    upper, whole = method.blocks['0']['q']['upper'].detach().numpy(), np.eye(16)
    for level in range(factors):
        factor, number = np.zeros((16, 16)), 0
        for span in range(0, 8, 2 * 2**level):
            for j in range(2**level):
                first, second = span + j, span + j + 2**level
                channels = [2 * first, 2 * first + 1, 2 * second, 2 * second + 1]
                factor[np.ix_(channels, channels)] = rotation(upper[level, number], 4).T
                number += 1
        whole = factor @ whole
    x = x_of(16)
    assert np.abs(method.on_input(0, 'q', x).detach().numpy() - x.numpy() @ whole).max() <= 1e-12
    weight = x_of(16, seed=2)[0]
    assert np.abs(method.fold_input(0, 'q', weight).detach().numpy() - weight.numpy() @ whole.T).max() <= 1e-12
    mixed = np.abs(whole[0]) > 1e-12
    assert mixed.sum() == 4 * 2**(factors - 1), 'channels that reach the first one'


@pytest.mark.parametrize('cfg, words', [
    (dict(type='OFT', block_size=5), 'divide 32, the input width of q in block 0'),
    (dict(type='OFT', block_size=1), '>= 2'),
    (dict(type='OFT', neumann_terms=1), 'neumann_terms must be 0 or >= 2'),
    (dict(type='BOFT', block_size=8, factors=4), 'is 64, which does not divide 32'),
    (dict(type='BOFT', block_size=3), 'block_size must be even'),
])
def test_refusals(cfg, words):
    with pytest.raises(ValueError, match=words) as error:
        BACKBONE['vit'].build([cfg])
    assert '\n' not in str(error.value)
