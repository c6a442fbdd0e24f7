# SPDX-License-Identifier: Apache-2.0
"""ST-Adapter and Adapter+ against their formulas, written out."""

import pytest
import torch
import torch.nn.functional as F
from cases import BACKBONE, features, perturb

from mmpetl.methods.adapter_plus import AdapterPlus
from mmpetl.methods.st_adapter import STAdapter
from mmpetl.sites import BlockSpec


def written_out(branch, x):
    """x (B, T, H, W, C): every output cell is a sum over its neighbours inside the clip, one channel at a time."""
    z = x @ branch.down.weight.T + branch.down.bias
    kernel = branch.conv.kernel_size
    out = torch.zeros_like(z) + branch.conv.bias
    sizes = z.shape[1:4]
    for offset in torch.cartesian_prod(*(torch.arange(k) - k // 2 for k in kernel)).tolist():
        weight = branch.conv.weight[(slice(None), 0, *(o + k // 2 for o, k in zip(offset, kernel)))]
        to = tuple(slice(max(0, -o), min(n, n - o)) for o, n in zip(offset, sizes))
        source = tuple(slice(max(0, o), min(n, n + o)) for o, n in zip(offset, sizes))
        out[(slice(None), *to)] += weight * z[(slice(None), *source)]
    return out @ branch.up.weight.T + branch.up.bias


@pytest.mark.parametrize('kernel', [(3, 1, 1), (3, 3, 5)])
@pytest.mark.parametrize('front', [0, 2])
def test_st_adapter_is_its_formula(kernel, front):
    grid = (4, 3, 5)
    method = STAdapter([BlockSpec(0, 0, 12, 2, 24, front, grid)], mid_dims=6, kernel=kernel, subs=('attn', 'ffn')).double()
    x = torch.randn(2, front + 60, 12, dtype=torch.float64)
    assert torch.equal(method.on_stream(0, x), x), 'the start is exact'
    perturb(method, 0.5)
    for sub, act in (('attn', lambda t: method.on_stream(0, t)),
                     ('ffn', lambda t: method.on_branch(0, 'attn', t / 4, t, t * 3 / 4) + t / 4)):
        got = act(x)
        expected = written_out(method.blocks['0'][sub], x[:, front:].unflatten(1, grid)).flatten(1, 3)
        assert torch.equal(got[:, :front], x[:, :front]), 'tokens in front of the grid pass by'
        assert (got[:, front:] - x[:, front:] - expected).abs().max() <= 1e-10
    clip = x[:, front:].unflatten(1, grid)
    assert (method.on_stream(0, clip).flatten(1, 3) - method.on_stream(0, x)[:, front:]).abs().max() <= 1e-10


def test_st_adapter_places():
    """Before attention only, all blocks; before the feed-forward network it sees what attention has added."""
    model = BACKBONE['videomae'].build([dict(type='STAdapter', mid_dims=4)])
    assert [len(tap._stream) for tap in model.petl.taps] == [1, 1, 1]
    assert not any(any(tap._branch.values()) for tap in model.petl.taps)
    assert set(model.petl['stadapter'].blocks['0']) == {'attn'}


def test_st_adapter_takes_clips_of_any_size():
    model = BACKBONE['video_swin'].build([dict(type='STAdapter', mid_dims=4, subs='ffn')])
    perturb(model.petl)
    with torch.no_grad():
        for shape in ((1, 3, 8, 36, 36), (1, 3, 4, 64, 32)):
            assert features(model(torch.randn(shape))).isfinite().all()


def test_adapter_plus_is_its_formula():
    method = AdapterPlus([BlockSpec(0, 0, 32, 2, 64)] * 2, mid_dims=4, drop_path_rate=[0., 0.5]).double()
    down, up = method.blocks['0'].down, method.blocks['0'].up
    assert all(layer.weight.abs().max() <= 0.02 and 0.005 < layer.weight.std() < 0.012 for layer in (down, up))
    assert not down.bias.any() and not up.bias.any() and (method.blocks['0'].scale == 1).all()
    perturb(method, 0.5)
    residual, y = torch.randn(2, 64, 5, 32, dtype=torch.float64)
    stream = residual + y
    hidden = F.gelu(stream @ down.weight.T + down.bias)
    branch = method.blocks['0'].scale * (hidden @ up.weight.T + up.bias)
    assert (method.on_branch(0, 'ffn', residual, stream, y) - y - branch).abs().max() <= 1e-10
    method.eval()
    whole = method.on_branch(1, 'ffn', residual, stream, y) - y
    method.train()
    part = method.on_branch(1, 'ffn', residual, stream, y) - y
    kept = part.abs().amax((1, 2)) > 0
    assert 0 < kept.sum() < 64, 'samples are dropped one by one'
    assert (part[kept] - 2 * whole[kept]).abs().max() <= 1e-10


@pytest.mark.parametrize('kernel', [(3, 1, 1), (5, 5, 5)])
def test_st_adapter_gradients_in_bfloat16(kernel):
    """Those of float32 up to rounding and the same in every step, whatever stood in the memory before."""
    method = STAdapter([BlockSpec(0, 0, 12, 2, 24, 0, (4, 4, 4))], mid_dims=8, kernel=kernel)
    perturb(method, 0.5)
    x, weight = torch.randn(2, 64, 12), torch.randn(2, 64, 12)

    def gradients(half):
        with torch.autocast('cpu', torch.bfloat16, enabled=half):
            loss = (method.on_stream(0, x) * weight).sum()
        for size in (10**3, 10**4, 10**5, 10**6):
            torch.full((size, ), float('nan'))
        return torch.autograd.grad(loss, list(method.parameters()))

    exact, found = gradients(False), [gradients(True) for _ in range(4)]
    for i, parameter in enumerate(exact):
        assert (found[0][i] - parameter).abs().max() <= 0.03 * parameter.abs().max()
        assert all(torch.equal(found[0][i], other[i]) for other in found)
