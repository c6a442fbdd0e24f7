# SPDX-License-Identifier: Apache-2.0
"""KAdaptation against Kronecker products that are really formed, and against arrays of the published code."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import drawn

from mmpetl.methods.kadaptation import KAdaptation
from mmpetl.sites import BlockSpec, Tap

GOLDEN = Path(__file__).parents[3] / 'shared' / 'golden' / 'kadapt_attn_clean.npz'


def specs(dims=(24, 24), heads=4):
    return [BlockSpec(i, 0, dim, heads, 4 * dim) for i, dim in enumerate(dims)]


def kron_update(method, i, op):
    """Equation 4: the sum of Kronecker products of rules and factors, (Cin, Cout), each product formed by
    torch.kron."""
    rule = method.rules[method.rule_name(i)][op]
    own = method.blocks[str(i)][method.ops[0] if method.tied else op]
    return sum(torch.kron(rule.left[j] @ rule.right[j], own.left[j] @ own.right[j]) for j in range(method.phm_dim))


@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(
    'options', [
        dict(),
        dict(rank=2),
        dict(rule_rank=3, rank=2),
        dict(bias='separate', ops=['q', 'fc1', 'fc2']),
        dict(share_rule=False),
        dict(tie_factors=True),
        dict(post_scale_q=True),
        dict(bias=None, ops='qkv')
    ],
    ids=str)
def test_equals_kronecker_products(options, dtype, tolerance):
    method = drawn(KAdaptation(specs(), phm_dim=4, scale=0.1, **options)).to(dtype)
    torch.manual_seed(1)
    for op in method.ops:
        wide_in, wide_out = method.specs[1].op_dims(op)
        x, y, g = (torch.randn(2, 5, c, dtype=dtype, requires_grad=True) for c in (wide_in, wide_out, wide_out))
        after = math.sqrt(6.) if op == 'q' and method.post_scale_q else 1.
        own_bias = method.biases[method.bias_name(1, op)] if method.bias else 0.
        expected = y + after * (0.1 * x @ kron_update(method, 1, op) + own_bias)
        actual = method.on_linear(1, op, x, y)
        used = [x, y, *(p for p in method.parameters())]
        gradients = [torch.autograd.grad(out, used, g, allow_unused=True) for out in (actual, expected)]
        torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
        for name, a, e in zip(['x', 'y', *dict(method.named_parameters())], *gradients):
            assert (a is None) == (e is None), name
            if a is not None:
                torch.testing.assert_close(a, e, atol=tolerance, rtol=tolerance)


def test_gradients_by_finite_differences():
    method = drawn(KAdaptation(specs((8, ), 2), phm_dim=2, scale=0.5)).double()
    x = torch.randn(1, 3, 8, dtype=torch.float64)
    parameters = dict(method.named_parameters())

    def run(*values):
        return torch.func.functional_call(method, dict(zip(parameters, values)), (), strict=False)

    method.forward = lambda: method.on_linear(0, 'q', x, x) + method.on_linear(0, 'v', x, x)
    assert torch.autograd.gradcheck(run, tuple(parameters.values()))


def load_golden(method, golden):
    names = {'q': ('q_proj_adapter1', 'phm_rule1'), 'v': ('v_proj_adapter1', 'phm_rule2')}
    found = {}
    for op, (own, rule) in names.items():
        for side in ('left', 'right'):
            found[f'rules.64.{op}.{side}'] = f'{rule}_{side}'
            if not (method.tied and op == 'v'):
                found[f'blocks.0.{op}.{side}'] = f'{own}_{side}'
    found['biases.0'] = 'b'
    method.load_state_dict({ours: torch.from_numpy(golden[f'param.{theirs}']) for ours, theirs in found.items()})
    return found


def attention(method, golden, x):
    """The published attention with the update on q and v before the division by sqrt(head_dim), batch first."""
    g = {k: torch.from_numpy(golden[f'param.{k}']).double()
         for k in ('in_proj_weight', 'in_proj_bias', 'out_proj.weight', 'out_proj.bias')}
    q, k, v = Tap([method], 0).qkv(x, *F.linear(x, g['in_proj_weight'], g['in_proj_bias']).chunk(3, -1))
    q, k, v = (t.unflatten(-1, (int(golden['num_heads']), -1)).transpose(1, 2) for t in (q, k, v))
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return F.linear((weights @ v).transpose(1, 2).flatten(2), g['out_proj.weight'], g['out_proj.bias'])


@pytest.mark.skipif(not GOLDEN.exists(), reason=f'{GOLDEN} is not there')
@pytest.mark.parametrize('tag,options', [('a_prescale_untied', {}),
                                         ('b_postscale_tied', dict(tie_factors=True, post_scale_q=True))])
def test_published_attention(tag, options):
    golden = np.load(GOLDEN)
    method = KAdaptation(specs((64, ), int(golden['num_heads'])), phm_dim=32, scale=float(golden['scale']), **options)
    found = load_golden(method.double(), golden)
    x = torch.from_numpy(golden['x']).double().requires_grad_()
    out = attention(method, golden, x)
    out.backward(torch.from_numpy(golden['grad_out']).double())
    np.testing.assert_allclose(out.detach(), golden[f'{tag}.out'], rtol=0, atol=1e-12)
    np.testing.assert_allclose(x.grad, golden[f'{tag}.grad_x'], rtol=0, atol=1e-12)
    for ours, theirs in found.items():
        expected = golden[f'{tag}.grad.{theirs}']
        np.testing.assert_allclose(method.get_parameter(ours).grad, expected, rtol=1e-9, atol=1e-12, err_msg=theirs)


@pytest.mark.skipif(not GOLDEN.exists(), reason=f'{GOLDEN} is not there')
def test_published_update_matrix():
    golden = np.load(GOLDEN)
    method = KAdaptation(specs((64, ), 4), phm_dim=32, scale=1.).double()
    load_golden(method, golden)
    np.testing.assert_allclose(method.delta(0, 'q').detach().t(), golden['Hq'], rtol=0, atol=1e-7)


def test_count_of_clip_vit_base():
    method = KAdaptation(specs([768] * 12, 12))
    assert sum(p.numel() for p in method.parameters()) == 12 * (4 * 32 * 24 + 768) + 4 * 32 * 32 == 50176


def test_rules_are_shared_per_width():
    method = KAdaptation(specs((24, 24, 48), 4), phm_dim=4)
    assert sorted(method.rules) == ['24', '48']
    assert sorted(KAdaptation(specs((24, 24, 48), 4), phm_dim=4, share_rule=False).rules) == ['0', '1', '2']


@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize('bias', ['shared', None])
def test_fold(dtype, tolerance, bias):
    method = drawn(KAdaptation(specs(), phm_dim=4, scale=0.01, bias=bias, post_scale_q=True)).to(dtype)
    x = torch.randn(2, 5, 24, dtype=dtype)
    for op in 'qkv':
        weight, offset = torch.randn(24, 24, dtype=dtype) / 5, torch.randn(24, dtype=dtype)
        y = F.linear(x, weight, offset)
        expected = method.on_linear(0, op, x, y) if op in method.linear_ops(0) else y
        torch.testing.assert_close(
            F.linear(x, *method.fold(0, op, weight, offset)), expected, atol=tolerance, rtol=tolerance)
    assert method.fold(0, 'q', weight, None)[1] is None or bias


def test_start_is_exact_and_everything_learns():
    torch.manual_seed(0)
    method = KAdaptation(specs(), phm_dim=4, scale=10.)
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter)
    method.init_weights()
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    x, y = torch.randn(2, 5, 24), torch.randn(2, 5, 24)
    assert torch.equal(method.on_linear(0, 'q', x, y), y)
    bound = math.sqrt(2) * math.sqrt(6 / (6 + 1))
    assert 0.9 * bound < method.blocks['0']['q'].left.abs().max() <= bound
    optimizer = torch.optim.Adam(method.parameters(), 1e-3)
    for _ in range(2):
        loss = sum(method.on_linear(i, op, x, y).square().mean() for i in (0, 1) for op in 'qv')
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [name for name, p in method.named_parameters() if torch.equal(p, before[name])] == []


def test_released_form_learns_its_bias_only_and_mixes_tokens():
    method = KAdaptation(specs((24, )), phm_dim=4, variant='released')
    x = torch.randn(3, 5, 24)
    loss = sum(method.on_linear(0, op, x, x).square().mean() for op in 'qv')
    loss.backward()
    assert [name for name, p in method.named_parameters() if p.grad.abs().max() > 0] == ['biases.0']
    # Token t of head h of every sample gets chunk (h * N + t) mod H of the bias, whatever its input.
    bias = torch.arange(24.)
    with torch.no_grad():
        method.biases['0'].copy_(bias)
        delta = method.on_linear(0, 'v', x, torch.zeros_like(x)).unflatten(-1, (4, 6))
    for h in range(4):
        for t in range(5):
            assert torch.equal(delta[:, t, h], bias.view(4, 6)[(h * 5 + t) % 4].expand(3, -1))
    drawn(method)
    alone, together = (method.on_linear(0, 'q', z, torch.zeros_like(z))[:1] for z in (x[:1], x))
    assert (alone - together).abs().max() > 0.1
    assert method.fold(0, 'q', torch.eye(24), None) is None


def test_the_released_form_has_two_versions():
    """In the first, v reads q's factors; in the later one it has its own."""
    first, later = (drawn(KAdaptation(specs((24, )), phm_dim=4, variant='released', **options))
                    for options in ({}, dict(tie_factors=False)))
    assert set(first.blocks['0']) == {'q'} and set(later.blocks['0']) == {'q', 'v'} and later.post_scale_q
    later.load_state_dict(first.state_dict(), strict=False)
    x = torch.randn(3, 5, 24)
    with torch.no_grad():
        one, other = (method.on_linear(0, 'v', x, x) for method in (first, later))
        assert (one - other).abs().max() > 0.1
        later.blocks['0']['v'].load_state_dict(first.blocks['0']['q'].state_dict())
        torch.testing.assert_close(later.on_linear(0, 'v', x, x), one)


def test_output_of_a_sample_does_not_depend_on_its_batch():
    method = drawn(KAdaptation(specs((24, )), phm_dim=4, scale=0.1))
    x = torch.randn(3, 5, 24)
    torch.testing.assert_close(
        method.on_linear(0, 'q', x, x)[:1], method.on_linear(0, 'q', x[:1], x[:1]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize('options,message',
                         [(dict(phm_dim=32), 'phm_dim=32 does not divide the width 24'),
                          (dict(phm_dim=0), 'phm_dim must be a whole number >= 1'),
                          (dict(phm_dim=4, rank=0), 'rank must be a whole number >= 1'),
                          (dict(phm_dim=4, rule_rank=-1), 'rule_rank must be'),
                          (dict(phm_dim=4, ops=['q', 'fc3']), "unknown op 'fc3'; did you mean"),
                          (dict(phm_dim=4, bias='both'), "'shared', 'separate' or None"),
                          (dict(phm_dim=4, ops=['q', 'fc1']), "use bias='separate'"),
                          (dict(phm_dim=4, variant='paper2'), "'paper' or 'released'"),
                          (dict(phm_dim=4, ops=['q', 'fc1'], bias=None, tie_factors=True), 'cannot share factors'),
                          (dict(phm_dim=4, layers=2), 'blocks 0..1')])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match='KAdaptation') as error:
        KAdaptation(specs(), **options)
    assert message in str(error.value)


def test_bfloat16_autocast_keeps_parameters_and_output_types():
    method = drawn(KAdaptation(specs(), phm_dim=4, scale=0.01))
    x, weight = torch.randn(2, 5, 24), torch.randn(24, 24)
    expected = method.on_linear(0, 'q', x, F.linear(x, weight))
    with torch.autocast('cpu', torch.bfloat16):
        out = method.on_linear(0, 'q', x, F.linear(x, weight))
    assert out.dtype == torch.bfloat16 and method.biases['0'].dtype == torch.float32
    assert (out - expected).abs().max() < 0.05 * expected.abs().max()


def test_compiles_to_one_graph():
    method = drawn(KAdaptation(specs(), phm_dim=4, scale=0.01))
    x = torch.randn(2, 5, 24)
    compiled = torch.compile(lambda t: method.on_linear(0, 'q', t, t), fullgraph=True, backend='eager')
    assert torch.equal(compiled(x), method.on_linear(0, 'q', x, x))
