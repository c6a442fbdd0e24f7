# SPDX-License-Identifier: Apache-2.0
"""``compile`` through the runner: the blocks alone, without a break in any, with MMEngine's autocast, and the same results."""

import copy

import pytest
import torch
import toy_chance
from cases import BACKBONE, features, perturb
from mmengine.runner import Runner

from mmpetl.training.compiling import FORMS, compile_blocks
from mmpetl.training.run import build_runner

#: No chance inside the blocks: compiled code draws its numbers in another order.
PETL = [dict(type='LoRA', rank=2), dict(type='AdaptFormer', mid_dims=4)]


class Graphs:
    """A backend that counts graphs and runs them as they are."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


@pytest.fixture(scope='module')
def losses(tmp_path_factory):
    """Two runs of three iterations under autocast, as they are and compiled."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp('compile')
    path, out = toy_chance.write(folder), {}
    for name in ('eager', 'compiled'):
        torch._dynamo.reset()
        cfg = toy_chance.config(path, folder / name, **{
            'optim_wrapper.type': 'mmpetl.CpuAmpOptimWrapper', 'train_cfg.max_epochs': 1,
            'model.backbone.drop_rate': 0., 'model.backbone.petl': PETL})
        if name == 'compiled':
            cfg.compile = dict(backend='aot_eager', fullgraph=True)
        runner = build_runner(cfg)
        model = runner.train()
        state = {k: v.clone() for k, v in model.state_dict().items()}
        out[name] = (state, runner, runner.message_hub.get_scalar('train/loss')._log_history.copy())
    return out


def test_a_compiled_run_equals_one_that_is_not(losses):
    (plain, _, history), (compiled, runner, theirs) = losses['eager'], losses['compiled']
    assert list(plain) == list(compiled), 'compiling must not rename anything'
    assert len(history) == 3 and abs(history - theirs).max() <= 1e-3
    for name, tensor in plain.items():
        assert torch.allclose(tensor, compiled[name], atol=5e-3), name
    blocks = runner.model.backbone.petl.blocks
    assert all(block._compiled_call_impl is not None for block in blocks)


def test_what_is_around_the_blocks_stays_as_it_is(losses):
    """MMEngine's training step, and with it its autocast context, is not compiled."""
    model = losses['compiled'][1].model
    assert 'train_step' not in vars(model) and model._compiled_call_impl is None
    assert '_maybe_compile' in vars(Runner), 'MMEngine compiles in this step; if it is gone, compiling.py must follow'


def test_a_base_in_4_bits_is_refused():
    with pytest.raises(ValueError, match="base_dtype='nf4' cannot be traced; give base_dtype='int8' or compile=False"):
        compile_blocks(BACKBONE['vit'].build([dict(type='LoRA', rank=2)], base_dtype='nf4'), True)


def test_a_base_in_8_bits_compiles():
    """Block by block, with the gradients of the base that is not compiled."""
    torch.set_num_threads(1)
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = BACKBONE['vit'].build([dict(type='LoRA', rank=2)], base_dtype='int8')
    perturb(model.petl)
    expected, x = copy.deepcopy(model), BACKBONE['vit'].inputs()
    compile_blocks(model, dict(backend='aot_eager', fullgraph=True))
    for network in (model, expected):
        features(network(x)).square().sum().backward()
    for (name, p), other in zip(model.petl.named_parameters(), expected.petl.parameters()):
        torch.testing.assert_close(p.grad, other.grad, atol=1e-5, rtol=1e-5, msg=name)


def test_a_block_is_one_graph_and_no_block_falls_back():
    """More blocks than torch's limit of graphs for one piece of code."""
    torch.set_num_threads(1)
    torch._dynamo.reset()
    vit, depth = BACKBONE['vit'], 9
    torch.manual_seed(0)
    model = vit.build([dict(type='LoRA', rank=2)], arch=dict(
        embed_dims=16, num_layers=depth, num_heads=2, feedforward_channels=16))
    perturb(model.petl)
    expected, graphs = copy.deepcopy(model), Graphs()
    with torch._dynamo.config.patch(recompile_limit=8):
        assert compile_blocks(model, dict(backend=graphs, fullgraph=True)) == depth
        assert torch._dynamo.config.recompile_limit == FORMS * depth
        out, wanted = features(model(vit.inputs())), features(expected(vit.inputs()))
    assert torch.equal(out, wanted)
    assert 1 <= graphs.count <= depth  # one for each block, or one that alike blocks share
