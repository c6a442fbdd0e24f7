# SPDX-License-Identifier: Apache-2.0
"""Compiled block by block, code is made once for all blocks that do the same, not once per block and op."""

import warnings

import pytest
import torch
from cases import BACKBONE, CASE
from torch._dynamo.testing import CompileCounter

warnings.filterwarnings('ignore')
ARCH = dict(embed_dims=32, num_layers=11, num_heads=4, feedforward_channels=64)


@pytest.mark.parametrize('name', ['LoRA', 'SSF'])
def test_blocks_share_their_code(name):
    """Eleven blocks are more than the limit of eight recompilations, beyond which torch gives up. Three differ: the first
    has an input without gradient or SSF's norm of the embedding before it, the last one is read at the class token."""
    torch._dynamo.reset()
    counter = CompileCounter()
    model = BACKBONE['vit'].build(CASE[name].petl, arch=ARCH)
    model.train()
    x = BACKBONE['vit'].inputs()
    expected = model(x)[0]
    for layer in model.layers:
        layer.compile(backend=counter, fullgraph=True)
    found = model(x)[0]
    found.sum().backward()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert counter.frame_count <= 3
    torch._dynamo.reset()
