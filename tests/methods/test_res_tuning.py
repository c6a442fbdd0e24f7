# SPDX-License-Identifier: Apache-2.0
"""Res-Tuning and Res-Tuning-Bypass against the paper's equations, written out in NumPy in double precision."""

import math

import numpy as np
import pytest
import torch
from cases import BACKBONE, drawn
from scipy.special import erf

from mmpetl.backbones import VideoMAE
from mmpetl.methods.res_tuning import ResTuning
from mmpetl.methods.res_tuning_bypass import ResTuningBypass
from mmpetl.sites import BlockSpec

VIT = BACKBONE['vit']
SPECS = [BlockSpec(i, 0, 768, 12, 3072, extra_tokens=1, grid=(14, 14)) for i in range(12)]


def built(petl, **options):
    """A tiny model in double precision, all of it drawn anew."""
    model = drawn(VIT.build([petl] if petl else [], **options).double(), 0.3)
    model.train(False)
    return model, {name: value.detach().numpy() for name, value in model.state_dict().items()}


def streams(model):
    """Input of every block and the output of the last, (B, N, C) each, and the picture they are of."""
    found, handles = [], [layer.register_forward_pre_hook(lambda _, args: found.append(args[0].numpy()))
                          for layer in model.layers]
    handles.append(model.layers[-1].register_forward_hook(lambda _, args, out: found.append(out.numpy())))
    picture = VIT.inputs(dtype=torch.float64)
    with torch.no_grad():
        feature = model(picture)[-1].numpy()
    for handle in handles:
        handle.remove()
    return found, picture, feature


def linear(s, name, x):
    return x @ s[f'{name}.weight'].T + s[f'{name}.bias']


def norm(s, name, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * s[f'{name}.weight'] + s[f'{name}.bias']


def gelu(x):
    return x * (1 + erf(x / math.sqrt(2))) / 2


def adapter(s, name, x):
    return linear(s, f'{name}.up', gelu(linear(s, f'{name}.down', x)))


def heads(x):
    return x.reshape(*x.shape[:-1], 4, 8).swapaxes(-3, -2)


def attention(q, k, v):
    """exp(q k^T / sqrt(d)) of every head, and its rows normed times v."""
    e = np.exp(q @ k.swapaxes(-1, -2) / math.sqrt(8))
    return e, e / e.sum(-1, keepdims=True) @ v


def tuned_block(s, i, x, attn, at):
    """A block with the published sum of two attentions and its Res-Adapters."""
    name = f'layers.{i}'
    u = norm(s, f'{name}.ln1', x)
    q, k, v = (heads(t) for t in np.split(linear(s, f'{name}.attn.qkv', u), 3, -1))
    tokens = s[f'petl.restuning.tokens.{i}']
    if attn == 'prompt':
        pairs = zip(*(np.split(s[f'{name}.attn.qkv.{p}'], 3) for p in ('weight', 'bias')))
        _, k_more, v_more = (heads(tokens[0] @ w.T + b) for w, b in pairs)
    else:
        k_more, v_more = heads(tokens[0]), heads(tokens[1])
    e, y = attention(q, k, v)
    e_more, y_more = attention(q, k_more, v_more)
    share = e_more.sum(-1, keepdims=True) / (e.sum(-1, keepdims=True) + e_more.sum(-1, keepdims=True))
    y = ((1 - share) * y + share * y_more).swapaxes(-3, -2).reshape(x.shape)
    x = x + linear(s, f'{name}.attn.proj', y)
    u = norm(s, f'{name}.ln2', x)
    y = linear(s, f'{name}.ffn.layers.1', gelu(linear(s, f'{name}.ffn.layers.0.0', u)))
    return x + y + adapter(s, f'petl.restuning.blocks.{i}.ffn', u if at == 'input' else y)


@pytest.mark.parametrize('attn, at', [('prompt', 'input'), ('prefix', 'output')])
def test_equals_the_published_sum_of_attentions(attn, at):
    model, s = built(dict(type='ResTuning', attn=attn, adapter_input=at, num_tokens=3, mid_dims=4, layers='0,2'))
    found, _, feature = streams(model)
    for i in (0, 2):
        want = tuned_block(s, i, found[i], attn, at)[:, :1 if i == 2 else None]  # the last block gives one token
        assert np.abs(found[i + 1] - want).max() <= 1e-11, i
    assert np.abs(feature - norm(s, 'ln1', want[:, 0])).max() <= 1e-11


def test_adapters_beside_both_sublayers():
    method = drawn(ResTuning(SPECS[:1], attn='adapter', mid_dims=4).double())
    s = {name: value.numpy() for name, value in method.state_dict().items()}
    x, y = (torch.randn(2, 5, 768, dtype=torch.float64) for _ in range(2))
    for sub in ('attn', 'ffn'):
        want = y.numpy() + adapter(s, f'blocks.0.{sub}', x.numpy())
        assert np.abs(method.on_branch(0, sub, y, x, y).detach().numpy() - want).max() <= 1e-10
    assert not method.active('kv', 0) and not hasattr(method, 'tokens')


@pytest.mark.parametrize('layers', [None, '0-1', '1'])
def test_bypass_equals_the_published_chain(layers):
    model, s = built(dict(type='ResTuningBypass', mid_dims=4, layers=layers))
    plain = VIT.build([]).double()
    plain.train(False)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith('petl.')})
    plain.layers[-1].tap.tokens_read = None
    found, picture, _ = streams(plain)
    chain, method = found[0][:, 0], model.petl['restuningbypass']
    for i in method.layers:
        name = f'petl.restuningbypass.steps.{i}'
        gate, x = 1 / (1 + np.exp(-s[f'{name}.alpha'])), found[i + 1][:, 0]
        chain = gate * (x + adapter(s, f'{name}.horizontal', x)) + (1 - gate) * (
            chain + adapter(s, f'{name}.vertical', chain))
    shapes = []
    method.steps['1'].register_forward_hook(lambda _, args, out: shapes.append(out.shape))
    feature = model(picture)[-1]
    assert np.abs(feature.detach().numpy() - norm(s, 'ln1', chain)).max() <= 1e-11
    assert shapes == [(2, 32)], 'one token goes through the chain'
    feature.sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None}
    assert trained == {f'petl.restuningbypass.{name}' for name, _ in method.named_parameters()}


def test_bypass_of_a_backbone_without_class_token():
    """The mean over all tokens, then the norm, as in the backbone's own output."""
    torch.manual_seed(0)
    model = VideoMAE(petl=[dict(type='ResTuningBypass', mid_dims=4)], **BACKBONE['videomae'].kwargs).double().eval()
    with torch.no_grad():
        for name, p in model.petl.named_parameters():
            p.fill_(100. if name.endswith('alpha') else 0.)  # the chain hands on the last block's output
    plain = VideoMAE(petl=[], **BACKBONE['videomae'].kwargs).double().eval()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith('petl.')})
    clip = BACKBONE['videomae'].inputs(dtype=torch.float64)
    torch.testing.assert_close(model(clip), plain(clip), rtol=0, atol=1e-12)


def test_start():
    """Xavier-uniform weights, biases of 1e-6, gates half open."""
    torch.manual_seed(0)
    method, bypass = ResTuning(SPECS), ResTuningBypass(SPECS)
    for linear_, bound in ((method.blocks['3']['ffn'].down, math.sqrt(6 / 778)), (bypass.steps['3'].vertical.up, math.sqrt(6 / 778))):
        weight = linear_.weight.abs().max().item()
        assert 0.98 * bound < weight <= bound and 0 < linear_.bias.abs().max() < 6e-6
        assert linear_.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert method.tokens['0'].abs().max().item() <= math.sqrt(6 / 778)
    assert all(not step.alpha.any() for step in bypass.steps.values())


@pytest.mark.parametrize('attn, ffn', [('prompt', 'adapter'), ('prefix', None), ('adapter', 'adapter'), (None, 'adapter')])
def test_counts(attn, ffn):
    tokens, width = 7, 5
    parts = {'prompt': tokens * 768, 'prefix': 2 * tokens * 768, 'adapter': 2 * 768 * width + width + 768, None: 0}
    method = ResTuning(SPECS, attn, ffn, tokens, width)
    assert sum(p.numel() for p in method.parameters()) == 12 * (parts[attn] + parts[ffn])
    bypass = ResTuningBypass(SPECS, width, layers='0-5')
    assert sum(p.numel() for p in bypass.parameters()) == 6 * (2 * parts['adapter'] + 1)


@pytest.mark.parametrize('make, words', [
    (lambda: ResTuning(SPECS, attn='promt'), "did you mean 'prompt'"),
    (lambda: ResTuning(SPECS, ffn='prompt'), 'choose from adapter, None'),
    (lambda: ResTuning(SPECS, adapter_input='x'), "'input' or 'output'"),
    (lambda: ResTuning(SPECS, attn=None, ffn=None), 'nothing to train'),
    (lambda: ResTuning(SPECS, num_tokens=0), 'num_tokens'),
    (lambda: ResTuningBypass(SPECS, mid_dims=0), 'mid_dims'),
    (lambda: BACKBONE['swin'].build([dict(type='ResTuningBypass')]), 'not defined|one width'),
])
def test_refusals(make, words):
    with pytest.raises(ValueError, match=words) as error:
        make()
    assert '\n' not in str(error.value)
