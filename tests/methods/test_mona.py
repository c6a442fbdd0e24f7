# SPDX-License-Identifier: Apache-2.0
"""Mona against its formula, in plain NumPy in double precision."""

import math

import numpy as np
import pytest
import torch
from cases import BACKBONE, features, perturb

from mmpetl.methods.mona import Mona
from mmpetl.sites import BlockSpec


def array(tensor):
    return tensor.detach().numpy()


def gelu(z):
    return np.vectorize(lambda t: 0.5 * t * (1 + math.erf(t / math.sqrt(2))))(z)


def convolved(layer, plane):
    """Depth-wise sums over the neighbours of each cell of plane (H, W, mid) that lie on it."""
    weight, bias = array(layer.weight)[:, 0], array(layer.bias)
    reach, (height, width, _) = weight.shape[-1] // 2, plane.shape
    out = np.zeros_like(plane) + bias
    for h, w in np.ndindex(height, width):
        for dh in range(-reach, reach + 1):
            for dw in range(-reach, reach + 1):
                if 0 <= h + dh < height and 0 <= w + dw < width:
                    out[h, w] += weight[:, dh + reach, dw + reach] * plane[h + dh, w + dw]
    return out


def written_out(f, tokens, grid):
    """The branch for tokens (front + H W, C) of one sample."""
    mean, spread = tokens.mean(-1, keepdims=True), tokens.var(-1, keepdims=True)
    normed = (tokens - mean) / np.sqrt(spread + 1e-5) * array(f.norm.weight) + array(f.norm.bias)
    z = array(f.scale_norm) * normed + array(f.scale_stream) * tokens
    z = z @ array(f.down.weight).T + array(f.down.bias)
    front = len(z) - grid[0] * grid[1]
    planes = [t.reshape(1, 1, -1) for t in z[:front]] + [z[front:].reshape(*grid, -1)]
    mixed = np.concatenate([(p + sum(convolved(c, p) for c in f.convs) / 3).reshape(-1, p.shape[-1]) for p in planes])
    mixed = mixed + mixed @ array(f.point.weight).T + array(f.point.bias)
    return gelu(mixed) @ array(f.up.weight).T + array(f.up.bias)


@pytest.mark.parametrize('front', [0, 2])
def test_mona_is_its_formula(front):
    grid, dim, mid = (4, 5), 12, 6
    method = Mona([BlockSpec(0, 0, dim, 2, 24, front, grid)], mid_dims=mid, drop_rate=0.).double()
    f = method.blocks['0']['ffn']
    assert (f.scale_norm - 1e-6).abs().max() < 1e-12 and (f.scale_stream == 1).all() and not f.up.bias.any()
    assert 0.01 < f.up.weight.std() < 0.03
    per_adapter = 4 * dim + 2 * dim * mid + mid + dim + mid * (9 + 25 + 49 + 3) + mid * mid + mid
    assert sum(p.numel() for p in method.parameters()) == 2 * per_adapter
    perturb(method, 0.3)
    residual, y = torch.randn(2, 2, front + 20, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for sub in ('attn', 'ffn'):
        got = array(method.on_branch(0, sub, residual, residual, y) - y)
        for n in range(2):
            expected = written_out(method.blocks['0'][sub], array(residual[n] + y[n]), grid)
            assert np.abs(got[n] - expected).max() <= 1e-12


def test_mona_takes_pictures_of_any_size():
    """The grid is that of the input at hand."""
    model = BACKBONE['swin'].build([dict(type='Mona', mid_dims=4)])
    perturb(model.petl)
    with torch.no_grad():
        for shape in ((1, 3, 32, 32), (1, 3, 64, 48)):
            assert features(model(torch.randn(shape))).isfinite().all()


def test_mona_needs_a_picture():
    with pytest.raises(ValueError, match='Mona: needs a two-dimensional token grid, but block 0'):
        BACKBONE['videomae'].build([dict(type='Mona')])
