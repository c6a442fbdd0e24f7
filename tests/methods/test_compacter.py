# SPDX-License-Identifier: Apache-2.0
"""Compacter against Kronecker products that are really formed."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmpetl.methods.compacter import Compacter, PHMLinear
from mmpetl.sites import BlockSpec


def specs(dims=(24, 24), heads=4):
    return [BlockSpec(i, 0, dim, heads, 4 * dim) for i, dim in enumerate(dims)]


def perturb(method, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in method.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.5)
    return method


def textbook(layer: PHMLinear, rule, x):
    """x H + b with H formed as a sum of Kronecker products."""
    matrix = sum(torch.kron(rule[j], layer.left[j] @ layer.right[j]) for j in range(len(rule)))
    return x @ matrix + layer.bias


@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize(
    'options', [
        dict(),
        dict(train_rule=True),
        dict(train_rule=True, share_rule=False, rank=3),
        dict(share_rule=False),
        dict(pre_norm=False),
        dict(subs=['attn', 'ffn'], mid_dims=[4, 12])
    ],
    ids=str)
def test_equals_kronecker_products(options, dtype, tolerance):
    method = perturb(Compacter(specs(), **{'mid_dims': 8, **options})).to(dtype)
    torch.manual_seed(1)
    for sub in method.branch_subs(1):
        y, g = (torch.randn(2, 5, 24, dtype=dtype, requires_grad=True) for _ in range(2))
        branch = method.blocks['1'][sub]
        normed = F.layer_norm(y, (24, ), branch.norm.weight, branch.norm.bias) if options.get('pre_norm', True) else y
        rules = [layer.rule if method.rule is None else method.rule for layer in (branch.down, branch.up)]
        t = textbook(branch.down, rules[0], normed)
        t = 0.5 * t * (1 + torch.tanh(math.sqrt(2 / math.pi) * (t + 0.044715 * t ** 3)))
        expected = y + textbook(branch.up, rules[1], t)
        actual = method.on_branch(1, sub, y, y, y)
        torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
        used = [y, *branch.parameters(), *([method.rule] if isinstance(method.rule, torch.nn.Parameter) else [])]
        for a, e in zip(torch.autograd.grad(actual, used, g), torch.autograd.grad(expected, used, g)):
            torch.testing.assert_close(a, e, atol=tolerance, rtol=tolerance)


def test_gradients_by_finite_differences():
    layer = PHMLinear(6, 4, 2, 2, 'trained').double()
    with torch.no_grad():
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    names = list(dict(layer.named_parameters()))
    assert torch.autograd.gradcheck(
        lambda x, *values: torch.func.functional_call(layer, dict(zip(names, values)), (x, None)),
        (x, *layer.parameters()))


@pytest.mark.parametrize('options,expected', [
    (dict(), 12 * (2 * 768 + (4 * 192 + 4 * 16 + 64) + (4 * 16 + 4 * 192 + 768))), (dict(train_rule=True), 48384 + 64),
    (dict(train_rule=True, share_rule=False), 48384 + 24 * 64), (dict(pre_norm=False), 48384 - 12 * 1536)
])
def test_count_of_clip_vit_base(options, expected):
    method = Compacter(specs([768] * 12, 12), **options)
    assert sum(p.numel() for p in method.parameters()) == expected
    assert options or expected == 48384


def test_rules_are_saved_whether_trained_or_not():
    shapes = [{
        k: tuple(v.shape)
        for k, v in Compacter(specs(), mid_dims=8, train_rule=t).state_dict().items()
    } for t in (False, True)]
    assert shapes[0] == shapes[1] and shapes[0]['rule'] == (4, 4, 4)
    assert sum(k.endswith('rule') for k in Compacter(specs(), mid_dims=8, share_rule=False).state_dict()) == 4


def test_start_is_exact_and_everything_learns():
    torch.manual_seed(0)
    method = Compacter(specs(), mid_dims=8, train_rule=True)
    perturb(method)
    method.init_weights()
    y = torch.randn(2, 5, 24)
    assert torch.equal(method.on_branch(0, 'ffn', y, y, y), y)
    assert method.rule.abs().max() <= 1 and method.rule.std() > 0.4
    assert method.blocks['0']['ffn'].norm.weight.eq(1).all()
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    optimizer = torch.optim.SGD(method.parameters(), 0.1)
    for _ in range(2):
        loss = sum((method.on_branch(i, 'ffn', y, y, y) - 1).square().mean() for i in (0, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [name for name, p in method.named_parameters() if torch.equal(p, before[name])] == []


def test_released_start_adds_noise_of_unit_size():
    torch.manual_seed(0)
    method = Compacter(specs([768], 12), init='released')
    y = 5 * torch.randn(4, 50, 768)
    assert 0.5 < (method.on_branch(0, 'ffn', y, y, y) - y).std() < 2


@pytest.mark.parametrize('options,message', [(dict(phm_dim=5), 'phm_dim=5 does not divide the block width 24'),
                                             (dict(mid_dims=10), 'phm_dim=4 does not divide the mid_dims 10'),
                                             (dict(mid_dims=0), 'mid_dims must be a whole number >= 1'),
                                             (dict(rank=0), 'rank must be'), (dict(phm_dim=0), 'phm_dim must be'),
                                             (dict(init='normal'), "'zero_up' or 'released'"),
                                             (dict(subs='ff'), "unknown op 'f'")])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match='Compacter') as error:
        Compacter(specs(), **options)
    assert message in str(error.value)


def test_bfloat16_autocast():
    method, y = perturb(Compacter(specs(), mid_dims=8)), torch.randn(2, 5, 24)
    expected = method.on_branch(0, 'ffn', y, y, y)
    with torch.autocast('cpu', torch.bfloat16):
        out = method.on_branch(0, 'ffn', y, y, y.bfloat16())
    assert out.dtype == torch.bfloat16
    assert (out - expected).abs().max() < 0.05 * expected.abs().max()


def test_compiles_to_one_graph():
    method, y = perturb(Compacter(specs(), mid_dims=8)), torch.randn(2, 5, 24)
    compiled = torch.compile(lambda t: method.on_branch(1, 'ffn', t, t, t), fullgraph=True, backend='eager')
    assert torch.equal(compiled(y), method.on_branch(1, 'ffn', y, y, y))
