# SPDX-License-Identifier: Apache-2.0
"""LoRA against peft on the same base, and against its formula."""

import pytest
import torch
from cases import BACKBONE, features, perturb
from torch import nn

from mmpetl.methods.lora import LoRA
from mmpetl.sites import BlockSpec

SPECS = [BlockSpec(index=i, stage=0, dim=12, heads=2, ffn_dim=20) for i in range(4)]


def test_formula_and_fold():
    method = LoRA(SPECS, rank=3, ops=['v', 'fc2'], alpha=6, layers='1-2').double()
    perturb(method, 0.3)
    x, y = torch.randn(2, 5, 20, dtype=torch.float64), torch.randn(2, 5, 12, dtype=torch.float64)
    factors = method.blocks['1']['fc2']
    expected = y + 2 * x @ (factors.up @ factors.down).T
    assert (method.on_linear(1, 'fc2', x, y) - expected).abs().max() <= 1e-12
    weight, bias = torch.randn(12, 20, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    folded, same = method.fold(1, 'fc2', weight, bias)
    assert (x @ folded.T - x @ weight.T - (expected - y)).abs().max() <= 1e-12 and same is bias
    assert torch.equal(method.fold(0, 'fc2', weight, bias)[0], weight), 'block 0 is not adapted'


def test_scalars_per_layer():
    method = LoRA(SPECS, rank={'0-1': 2, '2-3': 5}, alpha={'default': 4, '3': 10})
    assert [method.blocks[str(i)]['q'].down.shape[0] for i in range(4)] == [2, 2, 5, 5]
    assert [method.scales[i] for i in range(4)] == [2, 2, 0.8, 2]


@pytest.mark.peers
@pytest.mark.filterwarnings('ignore')
def test_equals_peft():
    """The same factors in peft's LoRA on separate q and v projections give the same outputs and gradients."""
    peft = pytest.importorskip('peft', reason='peft is a test-only peer')

    class Block(nn.Module):

        def __init__(self):
            super().__init__()
            self.q, self.v = nn.Linear(12, 12), nn.Linear(12, 12)

        def forward(self, x):
            return torch.cat([self.q(x), self.v(x)], -1)

    torch.manual_seed(0)
    block = Block()
    model = peft.get_peft_model(block, peft.LoraConfig(r=3, lora_alpha=6, target_modules=['q', 'v'], lora_dropout=0.))
    method = LoRA(SPECS[:1], rank=3, ops='qv', alpha=6)
    perturb(method, 0.3)
    for op in 'qv':
        layer = getattr(model.base_model.model, op)
        with torch.no_grad():
            layer.lora_A['default'].weight.copy_(method.blocks['0'][op].down)
            layer.lora_B['default'].weight.copy_(method.blocks['0'][op].up)
    x = torch.randn(2, 5, 12)
    layers = {op: getattr(model.base_model.model, op) for op in 'qv'}
    ours = torch.cat([method.on_linear(0, op, x, layers[op].base_layer(x)) for op in 'qv'], -1)
    theirs = model(x)
    assert (ours - theirs).abs().max() <= 1e-6
    ours.square().sum().backward()
    theirs.square().sum().backward()
    for op in 'qv':
        for mine, their in ((method.blocks['0'][op].down, layers[op].lora_A), (method.blocks['0'][op].up,
                                                                               layers[op].lora_B)):
            assert (mine.grad - their['default'].weight.grad).abs().max() <= 1e-4 * mine.grad.abs().max()


@pytest.mark.parametrize('name', ['vit', 'videomae', 'swin', 'video_swin'])
@pytest.mark.parametrize('op', ['q', 'k', 'v', 'proj', 'fc1', 'fc2'])
def test_every_op_acts(name, op):
    """A method that is attached but does not run is the commonest silent error of this field."""
    backbone = BACKBONE[name]
    model = backbone.build([dict(type='LoRA', rank=2, ops=[op], layers=[1])])
    perturb(model, 0.1)
    model.eval()
    x = backbone.inputs()
    with torch.no_grad():
        before = features(model(x))
        perturb(model.petl, 0.5, seed=5)
        assert (features(model(x)) - before).abs().max() > 1e-6


@pytest.mark.parametrize('options, message', [
    (dict(rank=0), 'rank'),
    (dict(ops='qz'), "unknown op 'z'"),
    (dict(init='ones'), 'init'),
    (dict(rank=[1, 2, 3]), '3 values'),
    (dict(rank={'0-1': 2}), 'no value for block 2'),
    (dict(layers='7'), 'block 7'),
])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        LoRA(SPECS, **options)
