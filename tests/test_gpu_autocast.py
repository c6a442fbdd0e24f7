# SPDX-License-Identifier: Apache-2.0
"""A GPU's autocast as the tests play it on a CPU: its lists are torch's, and it acts as they say."""

import ast
from pathlib import Path

import torch
import torch.nn.functional as F
from gpu_autocast import PROMOTED, WIDE, GpuAutocast

#: The file from which torch's own tests of CUDA's autocast take their operations.
LISTS = Path(torch.__file__).parent / 'testing/_internal/autocast_test_lists.py'
#: On its list, and used by no model here.
UNUSED = {'acos', 'asin', 'cosh', 'erfinv', 'sinh', 'tan', 'poisson_nll_loss', 'cosine_embedding_loss', 'hinge_embedding_loss',
          'margin_ranking_loss', 'triplet_margin_loss', 'pdist', 'cdist', 'nll_loss2d', 'multilabel_margin_loss',
          'soft_margin_loss', 'multi_margin_loss', 'atan2', 'bilinear', 'cross', 'vdot'}


def of_torch(*attributes):
    """Names in torch's lists for CUDA; those for the CPU, under the same attributes, come behind them."""
    found = {}
    for node in ast.walk(ast.parse(LISTS.read_text())):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.List):
            found.setdefault(getattr(node.targets[0], 'attr', ''), {e.elts[0].value for e in node.value.elts if isinstance(e, ast.Tuple)})
    return set().union(*(found[a] for a in attributes))


def test_lists_are_those_of_torch():
    wide = {f.__name__ for f in WIDE}
    assert of_torch('torch_fp32', 'nn_fp32', 'methods_fp32') - UNUSED - wide - {'__pow__'} == set()
    promoted = {f.__name__.replace('grid_sample', 'grid_sampler') for f in PROMOTED}
    assert of_torch('torch_need_autocast_promote') - UNUSED == promoted


def test_it_acts_under_autocast_alone():
    x, w = torch.randn(2, 8), torch.ones(8)
    half = x.bfloat16()
    with GpuAutocast():
        assert half.sum().dtype is torch.bfloat16
        with torch.autocast('cpu', torch.bfloat16):
            assert F.layer_norm(half, (8, ), w, w).dtype is half.softmax(-1).dtype is torch.float32
            assert torch.addcmul(half, half, half).dtype is F.linear(x, torch.ones(4, 8)).dtype is torch.bfloat16
            assert torch.addcmul(half, half, w).dtype is torch.float32
            assert torch.equal(F.layer_norm(half, (8, ), w, w), F.layer_norm(half.float(), (8, ), w, w))
            with torch.autocast('cpu', enabled=False):
                assert half.softmax(-1).dtype is torch.bfloat16
    with torch.autocast('cpu', torch.bfloat16):
        assert half.softmax(-1).dtype is torch.bfloat16
