# SPDX-License-Identifier: Apache-2.0
"""Tokens into windows and back: equal to pad, roll and partition; gradients; caches that hold plain tensors only."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from mmpetl.backbones import attention, windows

CASES = [((8, 8), (4, 4), (0, 0)), ((7, 9), (4, 4), (2, 2)), ((4, 8, 8), (2, 4, 4), (0, 0, 0)),
         ((3, 7, 8), (2, 4, 4), (1, 2, 2)), ((4, 6, 6), (2, 3, 3), (1, 0, 1))]


def textbook(x, grid, size, shift):
    """Pad, roll, partition, as the papers write it."""
    x = x.unflatten(1, grid)
    pads = [p for length, window in zip(reversed(grid), reversed(size)) for p in (0, -length % window)]
    x = F.pad(x, (0, 0, *pads))
    x = torch.roll(x, tuple(-s for s in shift), tuple(range(1, 1 + len(grid))))
    for axis in reversed(range(len(grid))):
        x = x.unflatten(1 + axis, (-1, size[axis]))
    rank = len(grid)
    x = x.permute(0, *range(1, 2 * rank, 2), *range(2, 2 * rank + 1, 2), 2 * rank + 1)
    return x.flatten(1 + rank, 2 * rank).flatten(0, rank)


@pytest.mark.parametrize('grid, size, shift', CASES)
def test_equal_to_the_textbook(grid, size, shift):
    x = torch.randn(2, torch.Size(grid).numel(), 3, dtype=torch.float64, requires_grad=True)
    out = windows.to_windows(x, grid, size, shift)
    assert torch.equal(out, textbook(x, grid, size, shift))
    assert torch.equal(windows.from_windows(out, grid, size, shift), x)
    assert torch.autograd.gradcheck(lambda t: windows.to_windows(t, grid, size, shift), x)
    assert torch.autograd.gradcheck(lambda t: windows.from_windows(t, grid, size, shift), out.detach().requires_grad_())
    assert torch.autograd.gradgradcheck(lambda t: windows.to_windows(t, grid, size, shift).square(), x)


def test_indices_are_made_once_and_stay_plain():
    args = ((6, 6), (3, 3), (1, 1), torch.device('cpu'))
    with FakeTensorMode():
        windows.window_indices(*args)
    with torch.inference_mode():
        first = windows.window_indices(*args)
    assert windows.window_indices(*args) is first
    assert all(type(t) is torch.Tensor and not t.is_inference() for t in first)
    for n in range(windows.SHAPES + 1):
        windows.window_indices((n + 1, 2), (1, 1), (0, 0), torch.device('cpu'))
    assert windows.window_indices(*args) is not first


def test_windows_at_once_equal_groups(monkeypatch):
    """One call with a bias per window against one call per group of windows that share a mask."""
    torch.manual_seed(0)
    heads, n, grid = 2, 4, (2, 3)
    q, k, v = (torch.randn(2 * 6, n, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    bias = torch.randn(heads, n, n, dtype=torch.float64, requires_grad=True)
    mask = torch.zeros(2, 3, n, n, dtype=torch.float64)
    for i, j in ((0, 2), (1, 0), (1, 2)):
        mask[i, j] = torch.where(torch.rand(n, n) < 0.4, -100., 0.)
    mask[1, 1] = mask[1, 0]  # windows of a group share their mask
    extra = tuple(torch.randn(1, 3, 4, dtype=torch.float64) for _ in range(2))

    def run(whole):
        monkeypatch.setattr(attention, 'WHOLE_MASK', whole)
        out = attention.attend_windows(q, k, v, heads, bias, mask.flatten(0, 1), grid, (True, True), 0, extra)
        return [out, *torch.autograd.grad(out.square().sum(), (q, k, v, bias))]

    for one, many in zip(run(2**30), run(-1)):
        torch.testing.assert_close(one, many)
