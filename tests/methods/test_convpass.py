# SPDX-License-Identifier: Apache-2.0
"""Convpass against separate convolutions of the map and of every token in front of it."""

import pytest
import torch
import torch.nn.functional as F
from cases import drawn
from mmpretrain.models.utils import resize_pos_embed

import mmpetl
from mmpetl.methods.convpass import Convpass
from mmpetl.registry import MODELS
from mmpetl.sites import BlockSpec


def specs(depth=2, dim=24, grid=(3, 4), extra=1):
    return [BlockSpec(i, 0, dim, 4, 4 * dim, extra, grid) for i in range(depth)]


def textbook(branch, x, grid):
    """Figure 2, token by token: each front token is a map of one pixel, the rest is one map."""
    def act(t):
        return t * torch.sigmoid(1.702 * t)

    z = act(F.linear(x, branch.down.weight, branch.down.bias))
    front = x.shape[1] - grid[0] * grid[1]
    conv = lambda m: F.conv2d(m, branch.conv.weight, branch.conv.bias, padding=1)  # noqa: E731
    parts = [conv(z[:, t, :, None, None]).flatten(2).transpose(1, 2) for t in range(front)]
    square = torch.stack([z[:, front + row * grid[1]:front + (row + 1) * grid[1]] for row in range(grid[0])], 1)
    parts.append(conv(square.permute(0, 3, 1, 2)).flatten(2).transpose(1, 2))
    return F.linear(act(torch.cat(parts, 1)), branch.up.weight, branch.up.bias)


@pytest.mark.parametrize('dtype,tolerance', [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize('front', [0, 1, 4])
def test_equals_separate_convolutions(front, dtype, tolerance):
    method = drawn(Convpass(specs(extra=front), mid_dims=5, scale=[0.3, 0.7])).to(dtype).eval()
    x, y, g = (torch.randn(2, front + 12, 24, dtype=dtype, requires_grad=True) for _ in range(3))
    for sub in ('attn', 'ffn'):
        branch = method.blocks['1'][sub]
        expected, actual = y + 0.7 * textbook(branch, x, (3, 4)), method.on_branch(1, sub, y, x, y)
        torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)
        used = [x, y, *branch.parameters()]
        for a, e in zip(torch.autograd.grad(actual, used, g), torch.autograd.grad(expected, used, g)):
            torch.testing.assert_close(a, e, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize('subs,expected', [(('attn', 'ffn'), 327552), ('attn', 163776)])
def test_count_of_vit_base(subs, expected):
    method = Convpass(specs(12, 768, (14, 14)), subs=subs)
    assert sum(p.numel() for p in method.parameters()) == expected
    assert expected == len(method.subs) * 12 * (768 * 8 + 8 + 8 * 8 * 9 + 8 + 8 * 768 + 768)


@pytest.mark.parametrize('init', ['identity', 'xavier'])
def test_start_is_exact_and_everything_learns(init):
    torch.manual_seed(0)
    method = drawn(Convpass(specs(), init=init))
    method.init_weights()
    x, y = torch.randn(2, 13, 24), torch.randn(2, 13, 24)
    assert torch.equal(method.on_branch(0, 'attn', y, x, y), y)
    conv = method.blocks['0']['attn'].conv
    kernel = torch.zeros(8, 8, 3, 3)
    kernel[range(8), range(8), 1, 1] = 1.
    assert torch.equal(conv.weight, kernel) == (init == 'identity')
    before = {name: p.detach().clone() for name, p in method.named_parameters()}
    optimizer = torch.optim.SGD(method.parameters(), 0.1)
    for _ in range(2):
        loss = sum((method.on_branch(i, sub, y, x, y) - 1).square().mean() for i in (0, 1) for sub in ('attn', 'ffn'))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert [name for name, p in method.named_parameters() if torch.equal(p, before[name])] == []


def test_own_drop_path_drops_samples_and_rescales_the_rest():
    torch.manual_seed(0)
    method = drawn(Convpass(specs(), drop_rate=0., drop_path_rate=[0., 0.25]))
    x, y = torch.randn(400, 13, 24), torch.zeros(400, 13, 24)
    assert torch.equal(method.on_branch(0, 'ffn', y, x, y), method.eval().on_branch(0, 'ffn', y, x, y))
    full = method.eval().on_branch(1, 'ffn', y, x, y)
    out = method.train().on_branch(1, 'ffn', y, x, y)
    kept = out.flatten(1).abs().sum(1) > 0
    assert 260 < kept.sum() < 340
    torch.testing.assert_close(out[kept], full[kept] / 0.75)
    assert not method.inside_drop_path


@pytest.mark.parametrize('options,message', [
    (dict(mid_dims=0), 'mid_dims must be a whole number >= 1'), (dict(init='eye'), "'identity' or 'xavier'"),
    (dict(subs='x'), "unknown op 'x'"),
    (dict(scale=[1., 2., 3.]), 'scale has 3 values'), (dict(drop_path_rate=[0.1] * 5), 'drop_path_rate has 5 values')
])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match='Convpass') as error:
        Convpass(specs(), **options)
    assert message in str(error.value)


@pytest.mark.parametrize('grid,shown', [((8, 14, 14), '(8, 14, 14)'), ((), 'none')])
def test_other_grids_are_refused_at_build(grid, shown):
    with pytest.raises(ValueError) as error:
        Convpass(specs(grid=grid))
    assert f'two-dimensional token grid, but block 0 of the backbone has {shown}' in str(error.value)


def test_bfloat16_autocast():
    method, x = drawn(Convpass(specs())).eval(), torch.randn(2, 13, 24)
    expected = method.on_branch(0, 'ffn', x, x, x)
    with torch.autocast('cpu', torch.bfloat16):
        out = method.on_branch(0, 'ffn', x, x, x.bfloat16())
    assert out.dtype == torch.bfloat16
    assert (out - expected).abs().max() < 0.05 * expected.abs().max()


def test_compiles_to_one_graph():
    method, x = drawn(Convpass(specs(), drop_path_rate=0.1)), torch.randn(2, 13, 24)
    compiled = torch.compile(lambda t: method.on_branch(1, 'ffn', t, t, t), fullgraph=True, backend='eager')
    assert compiled(x).shape == x.shape
    method.eval()
    assert torch.equal(compiled(x), method.on_branch(1, 'ffn', x, x, x))


@pytest.mark.parametrize('kind, options', [
    ('mmpetl.VisionTransformer', dict(
        arch=dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64), patch_size=8)),
    ('mmpetl.SwinTransformer', dict(
        arch=dict(embed_dims=16, depths=[2, 2], num_heads=[2, 4]), window_size=4, out_indices=(1, ))),
])
def test_another_input_size_than_the_backbone_was_built_for(kind, options):
    """A model that is fed 48 x 64 pixels equals one that was built for them."""
    petl = [dict(type='Convpass', drop_rate=0., init='xavier')]
    small, wide = (MODELS.build(dict(type=kind, img_size=size, petl=petl, **options)) for size in (32, (48, 64)))
    generator = torch.Generator().manual_seed(1)
    for parameter in small.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    state = small.state_dict()
    if 'pos_embed' in state:
        state['pos_embed'] = resize_pos_embed(state['pos_embed'], (4, 4), (6, 8), 'bicubic', 1)
    wide.load_state_dict(state)
    small.eval(), wide.eval()
    x = torch.randn(2, 3, 48, 64, generator=generator)
    with torch.no_grad():
        got, expected = small(x)[0], wide(x)[0]
        with mmpetl.disabled(wide):
            assert (wide(x)[0] - expected).abs().max() > 1e-2
    assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
