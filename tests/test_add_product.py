# SPDX-License-Identifier: Apache-2.0
"""The sum that low-rank updates share: the plain formula in values, gradients and types."""

import pytest
import torch
import torch.nn.functional as F

from mmpetl.sites import add_product


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
