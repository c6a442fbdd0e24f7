# SPDX-License-Identifier: Apache-2.0
"""PATT and V-PETL's adapter against published arrays and textbook forms."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import BACKBONE

from mmpetl.compat import install_mmaction_stub
from mmpetl.methods.bottleneck import AdaptFormer
from mmpetl.methods.patt import PATT
from mmpetl.sites import BlockSpec, Tap

GOLDEN = Path(__file__).resolve().parents[2].parent / 'shared' / 'golden'
golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f'published arrays are not in {GOLDEN}')
SPEC = BlockSpec(index=0, stage=0, dim=16, heads=2, ffn_dim=32, window=(2, 4, 4))


def _load(name):
    return {
        k: torch.from_numpy(v) if v.dtype.kind == 'f' else v
        for k, v in np.load(GOLDEN / name, allow_pickle=False).items()
    }


def _attention(arrays, method):
    install_mmaction_stub()
    from mmaction.models.backbones.swin import WindowAttention3D

    from mmpetl.backbones.video_swin import SitedWindowAttention3D
    attention = WindowAttention3D(16, (2, 4, 4), 2)
    attention.__class__ = SitedWindowAttention3D
    attention.tap = Tap([] if method is None else [method])
    state = {k[3:]: v for k, v in arrays.items() if k.startswith('sd.')}
    own = {k: v for k, v in state.items() if 'adapter' not in k}
    missing, unexpected = attention.load_state_dict(own, strict=False)
    assert missing == ['relative_position_index'] and not unexpected
    return attention, state


def _check(arrays, attention, parameters):
    for tag in ('nomask', 'mask'):
        x = arrays['x'].clone().requires_grad_()
        for parameter in parameters.values():
            parameter.grad = None
        # The published mask gives each of the two windows of a clip its own mask.
        mask = arrays['mask'] if tag == 'mask' else None
        y = attention(x, mask, (2, 1, 1), (True, False, False))
        y.backward(arrays['cotangent'])
        assert (y - arrays[f'y_{tag}']).abs().max() <= 1e-5
        assert (x.grad - arrays[f'gx_{tag}']).abs().max() <= 1e-5
        for name, parameter in parameters.items():
            assert (parameter.grad - arrays[f'gp_{tag}.{name}']).abs().max() <= 1e-5, name


@golden
@pytest.mark.parametrize('ops, name', [('kv', 'patt_kv'), ('qv', 'patt_qv'), ('qkv', 'patt_qkv'),
                                       ('qk', 'patt_qk_fixed')])
def test_published_arrays(ops, name):
    arrays = _load(f'vpetl_attn_{name}.npz')
    method = PATT([SPEC], ops=ops, mid_dims=8, scale=0.8)
    attention, state = _attention(arrays, method)
    block = method.blocks['0']
    parameters = {'qkv_adapter.0.weight': block['down'].weight, 'qkv_adapter.0.bias': block['down'].bias,
                  'qkv_adapter.2.weight': block['up'].weight, 'qkv_adapter.2.bias': block['up'].bias}
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(state[key])
    _check(arrays, attention, parameters)


@golden
def test_plain_window_attention():
    arrays = _load('vpetl_attn_off.npz')
    _check(arrays, _attention(arrays, None)[0], {})


@golden
def test_released_qk_has_no_softmax():
    """The published code skips the softmax in this mode; ours must not reproduce that."""
    arrays = _load('vpetl_attn_patt_qk.npz')
    assert not torch.allclose(arrays['y_nomask'], _load('vpetl_attn_patt_qk_fixed.npz')['y_nomask'], atol=1e-2)


def _adapter(arrays, prefix, bottleneck):
    names = {
        'down_proj.weight': bottleneck.down.weight,
        'down_proj.bias': bottleneck.down.bias,
        'up_proj.weight': bottleneck.up.weight,
        'up_proj.bias': bottleneck.up.bias
    }
    with torch.no_grad():
        for key, parameter in names.items():
            parameter.copy_(arrays[f'sd.{prefix}{key}'])
    return names


@golden
def test_published_adapter_and_mlp():
    arrays = _load('vpetl_mlp_parallel.npz')
    method = AdaptFormer([SPEC], mid_dims=6, scale=0.1, input='normed', drop_rate=0.)
    names = _adapter(arrays, 'adaptmlp.', method.blocks['0']['ffn'])
    x = arrays['x'].clone().requires_grad_()
    hidden = F.gelu(F.linear(x, arrays['sd.fc1.weight'], arrays['sd.fc1.bias']))
    y = method.on_branch(0, 'ffn', torch.zeros_like(x), x,
                         F.linear(hidden, arrays['sd.fc2.weight'], arrays['sd.fc2.bias']))
    y.backward(arrays['cotangent'])
    assert (y - arrays['y']).abs().max() <= 1e-5
    assert (x.grad - arrays['gx']).abs().max() <= 1e-5
    for key, parameter in names.items():
        assert (parameter.grad - arrays[f'gp.adaptmlp.{key}']).abs().max() <= 1e-5

    arrays = _load('vpetl_adapter_ln-none_s01.npz')
    names = _adapter(arrays, '', method.blocks['0']['ffn'])
    for tag in ('nores', 'res'):
        x = arrays['x'].clone().requires_grad_()
        y = method.on_branch(0, 'ffn', x, x, x if tag == 'res' else torch.zeros_like(x))
        y.backward(arrays['cotangent'])
        assert (y - arrays[f'y_{tag}']).abs().max() <= 1e-5
        assert (x.grad - arrays[f'gx_{tag}']).abs().max() <= 1e-5


@pytest.mark.parametrize('ops', ['kv', 'qv', 'qk', 'qkv', 'v'])
def test_textbook_form(ops):
    method = PATT([SPEC], ops=ops, mid_dims=5, scale=0.3).double()
    x, q, k, v = torch.randn(4, 2, 7, 16, dtype=torch.float64)
    up, down = method.blocks['0']['up'], method.blocks['0']['down']
    got = method.on_qkv(0, x, q, k, v)
    expected = dict(q=q, k=k, v=v)
    for part, op in enumerate(ops):
        rows = slice(16 * part, 16 * (part + 1))
        expected[op] = expected[op] + 0.3 * (
            torch.tanh(x @ down.weight.T + down.bias) @ up.weight[rows].T + up.bias[rows])
    for tensor, op in zip(got, 'qkv'):
        assert (tensor - expected[op]).abs().max() <= 1e-12


def test_start_is_exact_only_with_zero_up():
    for init, exact in (('zero_up', True), ('default', False)):
        model = BACKBONE['vit'].build([dict(type='PATT', mid_dims=4, init=init)])
        model.eval()
        up = model.petl['patt'].blocks['0']['up'].weight
        assert bool((up == 0).all()) is exact


@pytest.mark.parametrize('options, message', [
    (dict(ops='kx'), "unknown op 'x'"),
    (dict(mid_dims=0), 'mid_dims'),
    (dict(init='ones'), 'zero_up'),
    (dict(layers='0-3'), 'block 3'),
])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        PATT([SPEC], **options)
