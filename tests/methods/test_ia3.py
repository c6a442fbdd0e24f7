# SPDX-License-Identifier: Apache-2.0
"""IA3 against the paper's formula, and its refusals."""

import pytest
import torch
from cases import BACKBONE, perturb

PETL = [dict(type='IA3', ops='kv'), dict(type='IA3', ops='fc2', at='input', name='ia3_ff')]


def test_formula():
    model = BACKBONE['vit'].build(PETL).double()
    model.eval()  # returns None
    perturb(model)
    block, (outer, inner) = model.layers[1], model.petl.values()
    factors, width = outer.blocks['1'], block.attn.embed_dims
    x = torch.randn(2, 5, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in block.attn.qkv(x).chunk(3, -1))
    l_k, l_v = (factors[op].unflatten(0, (4, 1, -1)) for op in 'kv')
    y = torch.softmax(q @ (l_k * k).transpose(-2, -1) / (width // 4)**0.5, -1) @ (l_v * v)
    expected = block.attn.proj(y.transpose(1, 2).flatten(2))
    torch.testing.assert_close(block.attn(x), expected, rtol=1e-12, atol=1e-12)
    fc1, fc2 = block.ffn.layers[0][0], block.ffn.layers[1]
    mid = torch.nn.functional.gelu(fc1(x))
    torch.testing.assert_close(block.feed_forward(x), fc2(inner.blocks['1']['fc2'] * mid), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('change, message', [(dict(at='both'), "'output' or 'input'"), (dict(ops='x'), 'unknown op'),
                                             (dict(ops='gate'), "no op 'gate'"), (dict(layers=[9]), 'block 9')])
def test_wrong_arguments(change, message):
    with pytest.raises(ValueError, match=message):
        BACKBONE['vit'].build([dict(type='IA3', **change)])
