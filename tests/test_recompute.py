# SPDX-License-Identifier: Apache-2.0
"""Recomputed results: bitwise the same values and gradients, fewer bytes, and peace with everything else that hooks
into autograd."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from mmpetl.recompute import ELEMENTWISE, LEVELS, SMALL_PRODUCT, Recomputing, is_recomputed, recomputed

LEVEL = max(LEVELS.values())


@pytest.fixture()
def parts():
    torch.manual_seed(0)
    return dict(
        norm=torch.nn.LayerNorm(8),
        x=torch.randn(2, 5, 8, requires_grad=True),
        gain=torch.randn(8, requires_grad=True),
        up=torch.randn(24, 8, requires_grad=True),
        down=torch.randn(8, 24, requires_grad=True))


def forward(p, level):
    """A norm, a gain, a product that is split into views, an activation and a product: chained recipes, views and
    double use."""
    with Recomputing(level):
        h = recomputed(p['norm'], p['x'])
        h = recomputed(torch.mul, h, p['gain'])
        a, b, c = F.linear(h, p['up']).chunk(3, -1)
        middle = recomputed(F.gelu, torch.cat([a * h, b, c], -1))
        return F.linear(middle, p['down']) + recomputed(torch.tanh,
                                                        recomputed(F.linear, h, p['up'][:8], level=SMALL_PRODUCT))


def leaves(p):
    return [p['x'], p['gain'], p['up'], p['down'], *p['norm'].parameters()]


@pytest.mark.parametrize('level', [ELEMENTWISE, LEVEL])
def test_values_and_gradients_are_bitwise_the_same(parts, level):
    found = []
    for chosen in (0, level):
        y = forward(parts, chosen)
        first = torch.autograd.grad(y.square().sum(), leaves(parts), retain_graph=True)
        again = torch.autograd.grad(y.square().sum(), leaves(parts), retain_graph=True)
        partly = torch.autograd.grad(y.sum(), parts['up'])
        found.append([y, *first, *again, *partly])
    assert all(torch.equal(a, b) for a, b in zip(*found))


def test_second_derivatives(parts):
    found = []
    for level in (0, LEVEL):
        grads = torch.autograd.grad(forward(parts, level).square().sum(), leaves(parts), create_graph=True)
        found.append(torch.autograd.grad(sum(g.square().sum() for g in grads), leaves(parts)))
    assert all(torch.equal(a, b) for a, b in zip(*found))


def kept(run, own):
    """Bytes of the storages that reach an outer hook, besides those in ``own``."""
    seen, own = {}, {t.untyped_storage().data_ptr() for t in own}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            seen[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = run()
    return sum(t.untyped_storage().nbytes() for t in seen.values()), y


def test_what_is_kept():
    torch.manual_seed(0)
    norm, x, up, down = torch.nn.LayerNorm(8), torch.randn(50, 8), torch.randn(
        32, 8, requires_grad=True), torch.randn(8, 32)

    def run(level):
        with Recomputing(level):
            return F.linear(recomputed(F.gelu, F.linear(recomputed(norm, x), up)), down.requires_grad_())

    own, unit = [x, up, down, *norm.parameters()], 50 * 8 * 4
    statistics = 2 * 50 * 4  # of the norm
    assert kept(lambda: run(0), own)[0] == (1 + 4 + 4) * unit + statistics
    assert kept(lambda: run(ELEMENTWISE), own)[0] == 4 * unit + statistics


def test_dear_results_are_kept_below_their_level():
    x, w = torch.randn(50, 8, requires_grad=True), torch.randn(32, 8)
    runs = {}
    for level in (ELEMENTWISE, SMALL_PRODUCT):
        with Recomputing(level):
            y = recomputed(F.linear, x, w, level=SMALL_PRODUCT)
            runs[level] = is_recomputed(y), is_recomputed(y[:, :4])
            assert not is_recomputed(x)
    assert runs == {ELEMENTWISE: (False, False), SMALL_PRODUCT: (True, True)}
    assert not is_recomputed(y), 'nothing is remembered outside'


def test_a_view_of_the_argument_is_not_announced():
    x = torch.randn(3, 4, requires_grad=True)
    with Recomputing(ELEMENTWISE):
        y = x * 2
        assert not is_recomputed(recomputed(torch.nn.Identity(), y)) and not is_recomputed(
            recomputed(torch.Tensor.t, y))


def test_results_changed_in_place_are_kept():
    x, found = torch.randn(3, 4), []
    for level in (0, ELEMENTWISE):
        w = torch.ones(4, requires_grad=True)
        with Recomputing(level):
            y = recomputed(torch.exp, x).add_(1.)
            (y * w).sum().backward()
        found.append(w.grad)
    assert torch.equal(*found)


def test_an_argument_changed_before_the_backward_pass_is_an_error():
    x, w = torch.randn(3, 4), torch.ones(4, requires_grad=True)
    with Recomputing(ELEMENTWISE):
        y = recomputed(torch.exp, x) * w
    x.add_(1.)
    with pytest.raises(RuntimeError, match='modified by an in-place operation'):
        y.sum().backward()


def test_a_layout_that_differs_is_an_error():
    x, w, calls = torch.randn(3, 4), torch.ones(4, requires_grad=True), []

    def odd(t):
        calls.append(1)
        return t.exp() if len(calls) == 1 else t.exp().t().contiguous().t()

    with Recomputing(ELEMENTWISE):
        y = recomputed(odd, x) * w
    with pytest.raises(RuntimeError, match='another memory layout'):
        y.sum().backward()


def test_autocast(parts):
    found = []
    for level in (0, LEVEL):
        with torch.autocast('cpu', torch.bfloat16):
            y = forward(parts, level)
        found.append([y, *torch.autograd.grad(y.float().square().sum(), leaves(parts))])
    assert all(torch.equal(a, b) for a, b in zip(*found)) and found[0][0].dtype == torch.bfloat16


def test_within_a_checkpoint_the_checkpoint_wins(parts):
    own = leaves(parts)
    plain, y = kept(lambda: forward(parts, LEVEL), own)
    expected = torch.autograd.grad(y.square().sum(), own)
    less, y = kept(lambda: checkpoint(forward, parts, LEVEL, use_reentrant=False), own)
    assert less == 0 < plain
    assert all(torch.equal(a, b) for a, b in zip(expected, torch.autograd.grad(y.square().sum(), own)))


def test_offloading_gets_what_is_kept(parts):
    with torch.autograd.graph.save_on_cpu():
        y = forward(parts, LEVEL)
    expected = torch.autograd.grad(forward(parts, 0).square().sum(), leaves(parts))
    assert all(torch.equal(a, b) for a, b in zip(expected, torch.autograd.grad(y.square().sum(), leaves(parts))))


def test_function_transforms_and_no_grad(parts):
    """Where hooks are not allowed or not needed, nothing is recomputed and nothing fails."""
    def loss(x):
        return forward({**parts, 'x': x}, LEVEL).square().sum()

    expected = torch.autograd.grad(loss(parts['x']), parts['x'])[0]
    assert torch.allclose(torch.func.grad(loss)(parts['x'].detach()), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(forward(parts, LEVEL), forward(parts, 0))


def test_an_error_leaves_no_hook_behind(parts):
    with pytest.raises(ZeroDivisionError), Recomputing(LEVEL):
        1 / 0  # noqa: B018
    assert torch._C._autograd._top_saved_tensors_default_hooks(False) is None
    assert not is_recomputed(parts['x'])
