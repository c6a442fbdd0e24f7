# SPDX-License-Identifier: Apache-2.0
"""Prefix tuning against golden arrays and a closed formula, its counts, and the life of its evaluation cache."""

import copy
import io

import pytest
import torch
from golden import golden_tensors
from torch.nn import functional as F

from mmpetl.backbones.attention import attend, attend_windows, split_heads
from mmpetl.methods.prefix import Prefix
from mmpetl.sites import BlockSpec


def specs(depth=2, dim=16, heads=2):
    return [BlockSpec(i, 0, dim, heads, 4 * dim) for i in range(depth)]


def swin_b_specs():
    dims = [128] * 2 + [256] * 2 + [512] * 18 + [1024] * 2
    return [BlockSpec(i, 0, d, d // 32, 4 * d, window=(8, 7, 7)) for i, d in enumerate(dims)]


def relative_index(window):
    grid = torch.stack(torch.meshgrid(*(torch.arange(w) for w in window), indexing='ij')).flatten(1)
    offset = (grid[:, :, None] - grid[:, None, :]).permute(1, 2, 0) + torch.tensor(window) - 1
    steps = torch.tensor([(2 * window[1] - 1) * (2 * window[2] - 1), 2 * window[2] - 1, 1])
    return (offset * steps).sum(-1)


def window_attention(z, method, x, mask):
    """Window attention of the golden file in its own words: (2, 4, 4) windows, two heads, prefix behind the tokens."""
    q, k, v = (split_heads(t, 2) for t in F.linear(x, z['sd.qkv.weight'], z['sd.qkv.bias']).chunk(3, -1))
    pk, pv = (t.expand(len(x), -1, -1, -1) for t in method.on_kv(0))
    bias = z['sd.relative_position_bias_table'][relative_index((2, 4, 4))].permute(2, 0, 1)[None]
    bias = bias if mask is None else bias + mask[:, None]
    logits = q @ torch.cat([k, pk], 2).transpose(-1, -2) * 8**-0.5
    weights = (logits + F.pad(bias, (0, pk.shape[2]))).softmax(-1)
    y = (weights @ torch.cat([v, pv], 2)).transpose(1, 2).flatten(2)
    return F.linear(y, z['sd.proj.weight'], z['sd.proj.bias'])


@pytest.mark.parametrize('masked', [False, True])
def test_golden(masked):
    z = golden_tensors('vpetl_attn_prefix_kv_fixed', 'f')
    method = Prefix(specs(1), num_tokens=3, mid_dims=8)
    layers = (('down', 0), ('up', 2))
    names = {
        'table': 'wte.weight',
        **{
            f'{a}.{k}': f'control_trans.{n}.{k}'
            for a, n in layers
            for k in ('weight', 'bias')
        }
    }
    method.blocks['0'].load_state_dict({own: z[f'sd.{theirs}'] for own, theirs in names.items()})
    tag = 'mask' if masked else 'nomask'
    x = z['x'].requires_grad_()
    y = window_attention(z, method, x, z['mask'] if masked else None)
    torch.testing.assert_close(y, z[f'y_{tag}'], atol=1e-5, rtol=0)
    y.backward(z['cotangent'])
    torch.testing.assert_close(x.grad, z[f'gx_{tag}'], atol=1e-5, rtol=0)
    for own, parameter in method.blocks['0'].named_parameters():
        torch.testing.assert_close(parameter.grad, z[f'gp_{tag}.{names[own]}'], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('masked', [False, True])
def test_golden_on_queries_and_keys(masked):
    """Video Swin's attention over windows of (4, 7, 7), through the sited attention."""
    z = golden_tensors('vpetl_attn_prefix_qk_swapped', 'f')
    spec = [BlockSpec(0, 0, 8, 1, 32, window=(8, 7, 7))]
    method = Prefix(spec, num_tokens=3, mid_dims=8, ops='qk', positions=196)
    names = dict(table='wte.weight', **{
        f'{a}.{k}': f'control_trans.{n}.{k}' for a, n in (('down', 0), ('up', 2)) for k in ('weight', 'bias')})
    method.blocks['0'].load_state_dict({own: z[f'sd.{theirs}'] for own, theirs in names.items()})
    x = z['x'].requires_grad_()
    q, k, v = F.linear(x, z['sd.qkv.weight'], z['sd.qkv.bias']).chunk(3, -1)
    bias = z['sd.relative_position_bias_table'][relative_index((4, 7, 7))].permute(2, 0, 1)
    # The second window of a picture is cut in two, as a shift would.
    half = torch.arange(196) >= 98
    mask = torch.stack([torch.zeros(196, 196), -100. * (half[:, None] != half)])
    y = attend_windows(q, k, v, 1, bias, mask if masked else None, (2, 1, 1), (True, False, False),
                       channels=method.on_channels(0, 196, 0))
    y = F.linear(y, z['sd.proj.weight'], z['sd.proj.bias'])
    tag = 'mask' if masked else 'nomask'
    torch.testing.assert_close(y, z[f'y_{tag}'], atol=1e-6, rtol=0)
    y.backward(z['cotangent'])
    torch.testing.assert_close(x.grad, z[f'gx_{tag}'], atol=1e-5, rtol=0)
    for own, parameter in method.blocks['0'].named_parameters():
        torch.testing.assert_close(parameter.grad, z[f'gp_{tag}.{names[own]}'], atol=1e-5, rtol=1e-5)


def test_channels_equal_a_bias_of_the_logits():
    """Only the sum of products changes: attention with the bias scale * Q_p^T K_p, in windows of each kind."""
    torch.manual_seed(0)
    method = Prefix([BlockSpec(0, 0, 16, 2, 32, window=(2, 3))], num_tokens=4, mid_dims=8, ops='qk').double()
    rows = method.on_channels(0, 6, 0)
    q, k, v = torch.randn(3, 8, 6, 16, dtype=torch.float64)
    bias, mask = torch.randn(2, 6, 6).double(), -100. * (torch.rand(4, 6, 6) < .3).double()
    learned = bias + rows[0] @ rows[1].transpose(-1, -2) * 8**-0.5
    for given in (None, mask):
        kwargs = dict(mask=given, windows=(2, 2), shifted=(True, True))
        torch.testing.assert_close(attend_windows(q, k, v, 2, bias, channels=rows, **kwargs),
                                   attend_windows(q, k, v, 2, learned, **kwargs))
    torch.testing.assert_close(attend(q, k, v, 2, channels=rows), attend(q, k, v, 2, bias=learned - bias))


def test_softmax_runs_over_the_prefix_under_a_mask():
    """The published code leaves the prefix columns of a masked window as raw logits: its result is another one."""
    fixed, released = (golden_tensors(f'vpetl_attn_prefix_kv_{form}', 'f') for form in ('fixed', 'swapped'))
    torch.testing.assert_close(fixed['y_nomask'], released['y_nomask'], atol=1e-6, rtol=0)
    assert (fixed['y_mask'] - released['y_mask']).abs().max() > 0.5


def test_attention_over_a_prefix_is_a_weighted_mean_of_two_attentions():
    """Closed form (He et al., arXiv 2110.04366, eq. 4): (1 - l) attn(x) + l attn(prefix), l the prefix's share of the
    softmax."""
    torch.manual_seed(0)
    method = Prefix(specs(1), num_tokens=5, mid_dims=8)
    q, k, v = torch.randn(3, 2, 7, 16).unbind(0)
    pk, pv = method.on_kv(0)
    qh, kh = split_heads(q, 2), split_heads(k, 2)
    on_x, on_p = (torch.logsumexp(qh @ t.transpose(-1, -2) * 8**-0.5, -1, keepdim=True) for t in (kh, pk[None]))
    share = torch.sigmoid(on_p - on_x)
    prefix = (qh @ pk.transpose(-1, -2) * 8**-0.5).softmax(-1) @ pv
    plain = split_heads(attend(q, k, v, 2), 2)
    expected = ((1 - share) * plain + share * prefix).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attend(q, k, v, 2, method.on_kv(0)), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize('tokens, mid, total', [(16, 128, 4839936), (20, 64, 2576384)])
def test_counts_swin_b(tokens, mid, total):
    count = sum(p.numel() for p in Prefix(swin_b_specs(), num_tokens=tokens, mid_dims=mid).parameters())
    assert count == total == 12032 * (tokens + 3 * mid + 2) + 24 * mid


def test_counts_without_mlp():
    assert sum(p.numel() for p in Prefix(swin_b_specs(), num_tokens=16, mid_dims=None).parameters()) == 2 * 16 * 12032


def test_initial_values():
    """Table N(0, 1), torch's default Linear initialisation; directly trained keys and values N(0, 0.02)."""
    torch.manual_seed(0)
    block = Prefix(specs(1, 64), num_tokens=200, mid_dims=64).blocks['0']
    assert block.table.std().item() == pytest.approx(1, rel=0.05)
    assert 0.11 < block.down.weight.abs().max() <= 1 / 8
    assert Prefix(
        specs(1, 64), num_tokens=200, mid_dims=None).blocks['0'].keys_values.std().item() == pytest.approx(
            0.02, rel=0.05)


def test_direct_keys_and_values():
    method = Prefix(specs(1), num_tokens=3, mid_dims=None)
    k, v = method.on_kv(0)
    assert k.shape == v.shape == (2, 3, 8)
    assert torch.equal(torch.stack([k, v]), method.blocks['0'].keys_values)


def fresh(method, i=0):
    """What the method must return now, computed without any cache."""
    return torch.stack(method.blocks[str(i)]())


@torch.no_grad()
def cached(method, i=0):
    return torch.stack(method.on_kv(i))


def changes():
    """Every way in which the parameters may change in evaluation mode."""

    def optimizer_step(m):
        for p in m.parameters():
            p.grad = torch.ones_like(p)
        torch.optim.SGD(m.parameters(), 0.1).step()

    def load(m, **kwargs):
        m.load_state_dict({k: v + 1 for k, v in m.state_dict().items()}, **kwargs)

    def swap(m):  # as MMEngine's EMAHook does before it evaluates
        m.blocks['0'].table.data.copy_(torch.randn(3, 16))
        m.eval()

    def new_data(m):
        m.blocks['0'].table.data = torch.randn(3, 16)

    def replace(m):
        m.blocks['0'].table = torch.nn.Parameter(torch.randn(3, 16))

    return dict(
        optimizer_step=optimizer_step,
        load=load,
        assign=lambda m: load(m, assign=True),
        swap=swap,
        new_data=new_data,
        replace=replace,
        double=lambda m: m.double(),
        reset=lambda m: m.reset_parameters())


@pytest.mark.parametrize('change', changes())
def test_cache_is_never_stale(change):
    method = Prefix(specs(), num_tokens=3, mid_dims=8).eval()
    before = cached(method)
    assert method.on_kv(0)[0].requires_grad, 'with gradients the cache must not answer'
    changes()[change](method)
    after = cached(method)
    assert change == 'double' or not torch.equal(before, after)
    assert torch.equal(after, fresh(method).to(after))


def test_cache_computes_once():
    method = Prefix(specs(), num_tokens=3, mid_dims=8)
    calls = []
    method.blocks['0'].down.register_forward_hook(lambda *_: calls.append(1))
    method.eval()
    assert torch.equal(cached(method), cached(method)) and len(calls) == 1
    method.train()
    cached(method), cached(method)
    assert len(calls) == 3
    method.eval()
    cached(method)
    assert len(calls) == 4
    with torch.inference_mode():
        method.on_kv(0)
    assert len(calls) == 4


def test_functional_call_is_not_answered_from_the_cache():
    method = Prefix(specs(), num_tokens=3, mid_dims=8).eval()
    cached(method)

    class Call(torch.nn.Module):

        def __init__(self):
            super().__init__()
            self.method = method

        def forward(self):
            return torch.stack(self.method.on_kv(0))

    call = Call()
    with torch.no_grad():
        for scale in (0., 1.):
            swapped = {k: torch.full_like(v, scale) for k, v in call.state_dict().items()}
            got = torch.func.functional_call(call, swapped)
            other = copy.deepcopy(method)
            other.load_state_dict({k.removeprefix('method.'): v for k, v in swapped.items()})
            assert torch.equal(got, fresh(other))


def test_copies_and_files_do_not_carry_the_cache():
    method = Prefix(specs(), num_tokens=3, mid_dims=8).eval()
    cached(method)
    clone = copy.deepcopy(method)
    with torch.no_grad():
        clone.blocks['0'].table.zero_()
    assert torch.equal(cached(clone), fresh(clone)) and torch.equal(cached(method), fresh(method))
    buffer = io.BytesIO()
    torch.save(method, buffer)
    buffer.seek(0)
    again = torch.load(buffer, weights_only=False)
    assert torch.equal(cached(again), cached(method))
    assert not any('cache' in k for k in method.state_dict())


def test_autocast_and_plain_results_are_kept_apart():
    method = Prefix(specs(), num_tokens=3, mid_dims=8).eval()
    with torch.autocast('cpu', torch.bfloat16):
        assert cached(method).dtype == torch.bfloat16
    assert cached(method).dtype == torch.float32
    assert torch.equal(cached(method), fresh(method))


def test_dropout_acts_in_training_only():
    method = Prefix(specs(), num_tokens=3, mid_dims=8, drop_rate=0.5)
    assert (method.on_kv(0)[0] == 0).any()
    method.eval()
    assert not (method.on_kv(0)[0] == 0).any()


@pytest.mark.parametrize('kwargs, message',
                         [(dict(num_tokens=0), 'Prefix: num_tokens must be a whole number >= 1, got 0'),
                          (dict(mid_dims=0), 'Prefix: mid_dims'), (dict(layers=[5]), 'names block 5')])
def test_refusals(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Prefix(specs(), **kwargs)
