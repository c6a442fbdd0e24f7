# SPDX-License-Identifier: Apache-2.0
"""The sum that low-rank updates share: the plain formula in values, gradients and types."""

import pytest
import torch
import torch.nn.functional as F

from mmpetl.sites import add_product, forked, product_as, scale_about, scale_shift, scaled, sum_as


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('scale', [1., 2.5])
@pytest.mark.parametrize('shape', [(5, ), (2, 5), (2, 3, 4)])
def test_equals_the_formula(shape, scale, bias):
    make = torch.Generator().manual_seed(0)
    fused, code, weight, shift = (torch.randn(*s, dtype=torch.float64, generator=make, requires_grad=True)
                                  for s in ((*shape, 18), (*shape, 3), (6, 3), (6, )))
    y, shift = fused[..., 6:12], shift if bias else None  # a slice, as q of a fused qkv is
    leaves = [t for t in (fused, code, weight, shift) if t is not None]
    found, expected = add_product(y, code, weight, scale, shift), y + scale * F.linear(code, weight, shift)
    assert torch.allclose(found, expected, atol=1e-12) and found.shape == y.shape
    for a, b in zip(*(torch.autograd.grad((out * out).sum(), leaves) for out in (found, expected))):
        assert torch.allclose(a, b, atol=1e-10)


def test_no_view_is_written_to_and_y_stays():
    y, code, weight, bias = torch.randn(2, 5, 6), torch.randn(2, 5, 3), torch.randn(
        6, 3, requires_grad=True), torch.randn(6)
    before = y.clone()
    out = add_product(y, code, weight, bias=bias)
    names, nodes = set(), [out.grad_fn]
    while nodes:
        node = nodes.pop()
        names.add(type(node).__name__)
        nodes += [n for n, _ in node.next_functions if n is not None]
    assert not {'AsStridedBackward0', 'CopySlices'} & names and torch.equal(y, before)


def test_the_wider_type_wins():
    code, weight = torch.randn(2, 5, 3, dtype=torch.bfloat16), torch.randn(6, 3, dtype=torch.bfloat16)
    assert add_product(torch.zeros(2, 5, 6), code, weight).dtype == torch.float32
    assert add_product(torch.zeros(2, 5, 6, dtype=torch.bfloat16), code, weight).dtype == torch.bfloat16


def _same(function, formula, *leaves):
    found, expected = function(*leaves), formula(*leaves)
    assert torch.allclose(found, expected, atol=1e-12) and found.dtype is expected.dtype
    pairs = zip(*(torch.autograd.grad((out * out).sum(), leaves) for out in (found, expected)))
    assert all(torch.allclose(a, b, atol=1e-10) and a.shape == b.shape for a, b in pairs)


@pytest.mark.parametrize('shape', [(3, 4), (2, 3, 4)])
def test_factors_and_sums_equal_their_formulas(shape):
    make = torch.Generator().manual_seed(0)
    y, z, row, one = (torch.randn(*s, dtype=torch.float64, generator=make, requires_grad=True)
                      for s in (shape, shape, (4, ), (1, )))
    _same(scale_shift, lambda y, s: y * s, y, row)
    _same(lambda y, s: scale_shift(y, s, s), lambda y, s: y * s + s, y, row)
    other = torch.randn(4, dtype=torch.float64, generator=make, requires_grad=True)
    _same(scale_about, lambda y, s, c: (y - c) * s + c, y, row, other)
    _same(lambda y, s: scale_about(y, s, None), lambda y, s: y * s, y, row)
    _same(scaled, lambda y, s: y * s, y, one)
    _same(lambda a, b: product_as(a, b, None), torch.mul, y, row)
    _same(lambda a, b: sum_as(a, b, None, 2.), lambda a, b: a + 2 * b, y, z)



def test_rounding_inside_a_kernel_is_the_cast_after_it():
    make = torch.Generator().manual_seed(0)
    a, b, row = (torch.randn(*s, generator=make).requires_grad_() for s in ((3, 4), (3, 4), (4, )))
    half = torch.bfloat16
    pairs = [(lambda a, b, row: product_as(a, row, half), lambda a, b, row: (a * row).to(half)),
             (lambda a, b, row: product_as(row, a, half), lambda a, b, row: (a * row).to(half)),
             (lambda a, b, row: sum_as(a, b, half, 2.), lambda a, b, row: (a + 2 * b).to(half)),
             (lambda a, b, row: sum_as(a, b.to(half), half), lambda a, b, row: (a + b.to(half)).to(half)),
             (lambda a, b, row: scale_shift(a.to(half), row), lambda a, b, row: (a.to(half) * row).to(half))]
    for function, formula in pairs:
        found, expected = function(a, b, row), formula(a, b, row)
        assert found.dtype is half and torch.equal(found, expected)
        grads = [torch.autograd.grad(out.float().square().sum(), [a, b, row], allow_unused=True)
                 for out in (found, expected)]
        for x, y in zip(*grads):
            assert (x is None) == (y is None) and (x is None or torch.allclose(x, y, rtol=2e-2, atol=2e-2))


def test_a_gradient_is_handed_over_to_the_fork():
    """As the sum reads x itself; two passes through one graph, one branch alone, and several sums add up."""
    make = torch.Generator().manual_seed(0)
    x, y, w = (torch.randn(3, 4, generator=make).requires_grad_() for _ in range(3))
    half = torch.bfloat16

    def formula(fork):
        with torch.autocast('cpu', half):
            a, b = fork(x * 1)
        seen = sum_as(b, y.to(half), half), sum_as(b, w.to(half), half)
        return [a * w, *seen], a, b

    (own, a, b), (plain, _, _) = formula(forked), formula(lambda x: (x, x))
    assert a.grad_fn is b.grad_fn and a.dtype is b.dtype is torch.float32 and torch.equal(a, b)
    for chosen in ([0, 1, 2], [1], [0], [0, 2]):
        for _ in range(2):
            grads = [torch.autograd.grad(sum(out[i].float().square().sum() for i in chosen), [x, y, w], retain_graph=True,
                                         allow_unused=True) for out in (own, plain)]
            for found, expected in zip(*grads):
                assert (found is None) == (expected is None)
                assert found is None or torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert forked(x)[0] is x  # autocast is off
