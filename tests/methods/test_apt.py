# SPDX-License-Identifier: Apache-2.0
"""APT against arrays of the published attention, an explicit softmax and its equivalent gated form."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmpetl.backbones import VideoMAE
from mmpetl.methods.apt import APT
from mmpetl.sites import BlockSpec

GOLDEN = Path(__file__).parents[3] / 'shared' / 'golden' / 'apt_attention.npz'


def specs(depth=2, dim=32, heads=4, patch=(2, 16, 16)):
    return [BlockSpec(i, 0, dim, heads, 4 * dim, grid=(2, 2, 2), patch=patch) for i in range(depth)]


def explicit_attention(q, k, v, extra):
    """softmax(q [k; p_k]^T / sqrt(d)) [v; p_v] with all matrices formed; q, k, v (B, h, N, d)."""
    if extra is not None:
        p_k, p_v = (t.expand(*k.shape[:2], -1, -1) for t in extra)
        k, v = torch.cat([k, p_k], 2), torch.cat([v, p_v], 2)
    return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1) @ v


@pytest.mark.skipif(not GOLDEN.exists(), reason=f'{GOLDEN} is not there')
@pytest.mark.parametrize('tag', ['none', 'plain', 'reparam', 'reparam_ones'])
def test_published_attention(tag):
    golden = np.load(GOLDEN)
    g = {k: torch.from_numpy(golden[k]) for k in golden.files if golden[k].shape and golden[k].dtype == np.float32}
    heads = int(golden['num_heads'])
    method = APT(specs(1, 32, heads), num_tokens=3, reparam='reparam' in tag)
    state = {'blocks.0.key': g['p_k'], 'blocks.0.value': g['p_v']}
    if method.reparam:
        state['blocks.0.scale'] = g['scale'] if tag == 'reparam' else torch.ones(2, 3)
    method.load_state_dict(state)
    x = g['x'].clone().requires_grad_()
    bias = torch.cat([g['q_bias'], torch.zeros(32), g['v_bias']])
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in F.linear(x, g['qkv_weight'], bias).chunk(3, -1))
    out = explicit_attention(q, k, v, None if tag == 'none' else method.on_kv(0)).transpose(1, 2).flatten(2)
    out = F.linear(out, g['proj_weight'], g['proj_bias'])
    (out * g['w']).sum().backward()
    found = {'out': out.detach(), 'gx': x.grad}
    if tag != 'none':
        block = method.blocks['0']
        found.update(
            gpk=block.key.grad, gpv=block.value.grad, **({
                'gscale': block.scale.grad
            } if method.reparam else {}))
    assert {f'{tag}_{name}' for name in found} == {k for k in golden.files if k.rsplit('_', 1)[0] == tag}
    for name, value in found.items():
        np.testing.assert_allclose(value, golden[f'{tag}_{name}'], rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize('reparam', ['max', 'exp', None])
def test_equals_a_gated_sum_of_two_attentions(reparam, dtype, tolerance):
    """out = (1 - g) Attn(tokens) + g Attn(prompts), g = sigmoid of the difference of the two log-sum-exps."""
    torch.manual_seed(0)
    method = APT(specs(), num_tokens=5, reparam=reparam).to(dtype)
    block = method.blocks['1']
    if reparam:
        with torch.no_grad():
            block.scale.copy_(torch.tensor([[0.5, 1.2, 0.9, 1.7, 1.1], [2., 0.3, 1.5, 1.4, 0.7]]))
    q, k, v, w = (torch.randn(2, 4, 6, 8, dtype=dtype, requires_grad=True) for _ in range(4))
    factors = 1. if reparam is None else (block.scale.clamp(min=1.) if reparam == 'max' else block.scale.exp())[...,
                                                                                                                None]
    p_k, p_v = (block.key, block.value) if reparam is None else (block.key * factors[0], block.value * factors[1])
    own, prompt = q @ k.transpose(-1, -2) / math.sqrt(8), q @ p_k.t() / math.sqrt(8)
    gate = torch.sigmoid(prompt.logsumexp(-1, keepdim=True) - own.logsumexp(-1, keepdim=True))
    expected = (1 - gate) * (own.softmax(-1) @ v) + gate * (prompt.softmax(-1) @ p_v)
    actual = explicit_attention(q, k, v, method.on_kv(1))
    used = [q, k, v, *block.parameters()]
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
    for a, e in zip(torch.autograd.grad(actual, used, w), torch.autograd.grad(expected, used, w)):
        torch.testing.assert_close(a, e, atol=tolerance, rtol=tolerance)


def test_gradient_of_a_scale_at_the_tie_is_halved_and_below_it_zero():
    method = APT(specs(1), num_tokens=3)
    with torch.no_grad():
        method.blocks['0'].scale.copy_(torch.tensor([[1., 0.9, 1.1]] * 2))
    method.on_kv(0)[0].sum().backward()
    full = method.blocks['0'].key.sum(1)
    torch.testing.assert_close(method.blocks['0'].scale.grad[0], full * torch.tensor([0.5, 0., 1.]))
    free = APT(specs(1), num_tokens=3, reparam='exp')
    free.on_kv(0)[0].sum().backward()
    assert free.blocks['0'].scale.grad[0].ne(0).all()


def test_start():
    torch.manual_seed(0)
    method = APT(specs(dim=256), num_tokens=200)
    bound = math.sqrt(6 / (3 * 16 * 16 + 64))
    for parameter in method.parameters():
        torch.nn.init.normal_(parameter)
    method.init_weights()
    for block in method.blocks.values():
        assert block.scale.eq(1).all()
        for prompt in (block.key, block.value):
            assert 0.99 * bound < prompt.abs().max() <= bound and abs(prompt.std() - bound / math.sqrt(3)) < 2e-3
    assert APT(specs(), reparam='exp').factors(0).eq(1).all()


def test_dropout_draws_one_mask_per_block_keys_first():
    method = APT(specs(1), num_tokens=3, drop_rate=0.5)
    torch.manual_seed(123)
    masks = [F.dropout(torch.ones(3, 8), 0.5) for _ in range(2)]
    torch.manual_seed(123)
    found = method.on_kv(0)
    for prompt, mask, name in zip(found, masks, ('key', 'value')):
        assert prompt.shape == (1, 3, 8)
        torch.testing.assert_close(prompt[0], getattr(method.blocks['0'], name) * mask)
    method.eval()
    assert torch.equal(method.on_kv(0)[0][0], method.blocks['0'].key)


@pytest.mark.parametrize('reparam', ['max', 'exp', None])
def test_absorbed_scales_change_nothing(reparam):
    method = APT(specs(), num_tokens=3, reparam=reparam).eval()
    with torch.no_grad():
        for block in method.blocks.values():
            if reparam:
                block.scale.copy_(torch.randn(2, 3) + 1)
    before = [method.on_kv(i) for i in (0, 1)]
    method.absorb_scales()
    assert [name for name, _ in method.named_parameters() if 'scale' in name] == [] and method.reparam is None
    for (k, v), (k_after, v_after) in zip(before, (method.on_kv(i) for i in (0, 1))):
        assert torch.equal(k, k_after) and torch.equal(v, v_after)
    APT(specs(), num_tokens=3, reparam=None).load_state_dict(method.state_dict())


@pytest.mark.parametrize('tokens,reparam,expected', [(400, False, 614400), (400, True, 624000), (1, True, 1560),
                                                     (5, False, 7680)])
@pytest.mark.parametrize('dim,heads', [(768, 12), (384, 6)])
def test_count_is_alike_for_both_sizes(tokens, reparam, expected, dim, heads):
    method = APT(specs(12, dim, heads), num_tokens=tokens, reparam=reparam)
    assert sum(p.numel() for p in method.parameters()) == expected == 12 * 2 * tokens * (64 + reparam)


def test_blocks_and_tokens_can_differ():
    method = APT(specs(4), num_tokens={'1-2': 2, '3': 7}, layers='1-3')
    assert [method.active('kv', i) for i in range(4)] == [False, True, True, True]
    assert [method.on_kv(i)[0].shape[1] for i in (1, 2, 3)] == [2, 2, 7]


@pytest.mark.parametrize('options,message', [(dict(num_tokens=0), 'num_tokens must be a whole number >= 1'),
                                             (dict(num_tokens=-3), 'num_tokens must be'),
                                             (dict(num_tokens=[1, 2, 3]), 'num_tokens has 3 values'),
                                             (dict(reparam='maxi'), "unknown reparam 'maxi'; did you mean 'max'"),
                                             (dict(layers='0-2'), 'blocks 0..1')])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match='APT') as error:
        APT(specs(), **options)
    assert message in str(error.value)


def test_compiles_to_one_graph():
    method = APT(specs(), num_tokens=3)
    compiled = torch.compile(lambda: method.on_kv(1), fullgraph=True, backend='eager')
    assert all(torch.equal(a, b) for a, b in zip(compiled(), method.on_kv(1)))


@pytest.mark.parametrize('dim,heads,tokens,expected', [(768, 12, 400, 703205), (384, 6, 1, 41213)])
def test_trained_parameters_with_final_norm_and_head_for_ucf101(dim, heads, tokens, expected):
    backbone = VideoMAE(
        embed_dims=dim,
        depth=12,
        num_heads=heads,
        mlp_ratio=4,
        petl=[dict(type='APT', num_tokens=tokens)],
        tune=['fc_norm.*'])
    head = torch.nn.Linear(dim, 101)
    assert sum(p.numel() for m in (backbone, head) for p in m.parameters() if p.requires_grad) == expected
