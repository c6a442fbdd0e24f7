# SPDX-License-Identifier: Apache-2.0
"""The waist's points that most methods do not need: inputs, the stream, frozen weights, the run-time grid, gates."""

import pytest
import torch
from cases import BACKBONES, features
from mmpretrain.models import VisionTransformer
from torch import nn

import mmpetl
from mmpetl.backbones.attention import attend
from mmpetl.sites import ALL_OPS, Method

ids = [b.name for b in BACKBONES]
backbones = pytest.mark.parametrize('backbone', BACKBONES, ids=ids)
VIT = dict(
    arch=dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=48), img_size=32, patch_size=8)


class Scaled(Method):
    """Scales the input of chosen ops."""

    tokenwise = True

    def __init__(self, specs, ops=ALL_OPS[:6], layers=None):
        super().__init__(specs, layers)
        self.ops = ops
        self.blocks = self.for_blocks(lambda i: nn.ParameterDict(
            {op: nn.Parameter(torch.ones(self.specs[i].op_dims(op)[0])) for op in ops}))

    def reset_parameters(self):
        for p in self.parameters():
            nn.init.ones_(p)

    def input_ops(self, index):
        return self.ops

    def on_input(self, i, op, x):
        return x * self.blocks[str(i)][op]

    def fold_input(self, i, op, weight):
        return weight * self.blocks[str(i)][op]


class Stream(Method):
    """Notes what enters each block."""

    def __init__(self, specs, layers=None):
        super().__init__(specs, layers)
        self.shift = nn.Parameter(torch.zeros(1))
        self.seen = {}

    def reset_parameters(self):
        nn.init.zeros_(self.shift)

    def on_stream(self, i, x):
        self.seen[i] = (self.grid(i), tuple(x.shape))
        return x + self.shift


class Norms(Method):
    """Starts at the row norms of the frozen weights, unless it has been trained."""

    tokenwise = True

    def __init__(self, specs, layers=None):
        super().__init__(specs, layers)
        self.norms = nn.ParameterDict({str(i): torch.zeros(s.dim) for i, s in enumerate(specs)})
        self.trained = False

    def reset_parameters(self):
        pass

    def on_loaded(self):
        if not self.trained:
            with torch.no_grad():
                for i in self.layers:
                    self.norms[str(i)].copy_(self.frozen(i, 'q')[0].norm(dim=1))

    def on_linear(self, i, op, x, y):
        return y * self.norms[str(i)] if op == 'q' else y


def fits(model):
    return all(torch.equal(model.petl['norms'].norms[str(i)], model.petl['norms'].frozen(i, 'q')[0].norm(dim=1))
               for i in range(len(model.petl.blocks)))


def draw(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)


@backbones
def test_inputs_are_scaled_and_fold(backbone):
    model = backbone.build([dict(type='LoRA', rank=2, ops='q,fc2'), dict(type=Scaled)]).double()
    draw(model)
    model.eval()
    x = backbone.inputs(dtype=torch.float64)
    with torch.no_grad():
        expected = features(model(x))
        mmpetl.merge(model, verify=False)
        assert (features(model(x)) - expected).abs().max() <= 1e-9 * expected.abs().max()


@backbones
def test_the_stream_is_met_with_its_grid(backbone):
    model = backbone.build([dict(type=Stream)])
    model.eval()
    stream = model.petl['stream']
    wider = backbone.inputs()
    if backbone.name != 'videomae':  # its position table has one size
        wider = torch.cat([wider, wider], -1)
    for x in (backbone.inputs(), wider):
        with torch.no_grad():
            plain = features(model(x))
        sizes = {i: (grid, shape) for i, (grid, shape) in stream.seen.items()}
        first = model.petl.blocks[0].spec
        assert sizes[0][0] == tuple(-(-n // p) for n, p in zip(x.shape[2:], first.patch))
        for i, (grid, shape) in sizes.items():
            tokens = torch.Size(grid).numel()
            assert shape[1:-1] == grid or shape[1] == tokens + model.petl.blocks[i].spec.extra_tokens
    with torch.no_grad():
        stream.shift.fill_(1.)
        assert (features(model(wider)) - plain).abs().max() >= 0
    with pytest.raises(ValueError, match='stream .Stream. is not a change of weights'):
        mmpetl.merge(model)


@pytest.mark.parametrize('options', [dict(), dict(with_cp=True)], ids=['kept', 'checkpointed'])
def test_a_second_size_leaves_the_first_backward_pass_alone(options):
    model = mmpetl.registry.MODELS.build(dict(
        type='mmpetl.VisionTransformer', petl=[dict(type='Convpass', mid_dims=2, drop_rate=0.)], **VIT, **options))
    draw(model.petl)
    small, large = torch.randn(1, 3, 32, 32), torch.randn(1, 3, 48, 64)
    features(model(small)).sum().backward()
    alone = [p.grad.clone() for p in model.petl.parameters()]
    model.zero_grad()
    loss = features(model(small)).sum()
    features(model(large))
    loss.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.petl.parameters(), alone))


def test_weight_aware_starts_follow_the_base():
    model = mmpetl.attach(VisionTransformer(**VIT), [dict(type=Norms)])
    assert fits(model), 'after attach'
    other = VisionTransformer(**VIT)
    draw(other, 5)
    model.load_state_dict(other.state_dict())
    assert fits(model), 'after the base was loaded'
    model.init_weights()
    assert fits(model), 'after init_weights'
    whole = {k: v + 1 for k, v in model.state_dict().items()}
    model.load_state_dict(whole)
    assert not fits(model), 'a whole checkpoint brings its own values'
    model.petl['norms'].trained = True
    model.load_state_dict(other.state_dict())
    assert not fits(model)


def test_frozen_needs_a_backbone():
    specs = [block.spec for block in mmpetl.attach(VisionTransformer(**VIT)).petl.blocks]
    with pytest.raises(ValueError, match='Norms is not attached to a backbone'):
        Norms(specs).frozen(0, 'q')
    assert Norms(specs).grid(0) == (4, 4)


def gated(**options):
    return VisionTransformer(**{**VIT, **options}, layer_cfgs=dict(ffn_type='swiglu_fused'))


def test_gated_networks_equal_upstream_and_carry_methods():
    plain = gated()
    draw(plain)
    model = gated()
    model.load_state_dict(plain.state_dict())
    mmpetl.attach(model, [dict(type='LoRA', rank=2, ops='gate,fc1,fc2'), dict(type=Scaled, ops=('gate', 'fc1'))])
    plain.eval(), model.eval()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (features(model(x)) - features(plain(x))).abs().max() <= 1e-5
        draw(model.petl)
        expected = features(model(x))
        assert (expected - features(plain(x))).abs().max() > 1e-2
        mmpetl.merge(model)
        assert (features(model(x)) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_block_without_a_gate_refuses_it():
    with pytest.raises(ValueError, match="LoRA: block 0 has no op 'gate'; it has q, k, v, proj, fc1, fc2"):
        mmpetl.attach(VisionTransformer(**VIT), [dict(type='LoRA', ops='gate')])


def test_rotation_acts_on_split_heads():
    q, k, v, extra = (torch.randn(2, 5, 8) for _ in range(4))
    angle = torch.randn(5, 4)

    def rotate(q, k):
        assert q.shape == (2, 2, 3, 4) and k.shape == (2, 2, 5, 4)
        return q * angle[:3], k * angle

    got = attend(q[:, :3], k, v, 2, (extra.view(2, 5, 2, 4).transpose(1, 2),) * 2, rotate=rotate)
    heads = [t.view(2, -1, 2, 4).transpose(1, 2) for t in (q[:, :3], k, v, extra)]
    keys = torch.cat([heads[3], heads[1] * angle], 2)
    values = torch.cat([heads[3], heads[2]], 2)
    expected = torch.softmax((heads[0] * angle[:3]) @ keys.transpose(-2, -1) / 2, -1) @ values
    assert (got - expected.transpose(1, 2).flatten(2)).abs().max() <= 1e-6


@pytest.mark.parametrize('device, dtype, wanted', [('meta', torch.float32, torch.float32),
                                                   ('cpu', torch.float64, torch.float64),
                                                   ('cpu', torch.bfloat16, torch.float32)])
def test_methods_go_where_the_base_is(device, dtype, wanted):
    model = nn.Module.to(VisionTransformer(**VIT), device=device, dtype=dtype)
    mmpetl.attach(model, [dict(type='LoRA'), dict(type='AdaptFormer'), dict(type='VPT', num_tokens=2)])
    assert {(p.device.type, p.dtype) for p in model.petl.parameters()} == {(device, wanted)}
    x = torch.zeros(1, 3, 32, 32, device=device, dtype=dtype)
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype is torch.bfloat16):
        assert features(model(x)).device.type == device


def test_a_subclass_with_blocks_of_its_own_is_named():
    class OwnBlocks(VisionTransformer):

        def __init__(self):
            super().__init__(**VIT)
            self.layers[0].attn = torch.nn.Identity()

    with pytest.raises(ValueError) as error:
        mmpetl.attach(OwnBlocks(), [dict(type='LoRA')])
    assert str(error.value).startswith(
        f'{__name__}.{OwnBlocks.__qualname__} cannot be adapted: block 0 holds layers.0.attn, a Identity')
    assert '\n' not in str(error.value)


def test_a_base_without_init_cfg(tmp_path):
    """Only MMEngine's modules have one; adapters are saved and loaded without."""
    models = [mmpetl.attach(VisionTransformer(**VIT), [dict(type='LoRA')]) for _ in range(2)]
    for model in models:
        del model.init_cfg
    models[1].load_state_dict({k: v for k, v in models[0].state_dict().items() if not k.startswith('petl.')})
    mmpetl.save_adapter(models[0], str(tmp_path / 'a.safetensors'))
    mmpetl.load_adapter(models[1], str(tmp_path / 'a.safetensors'))
    assert torch.equal(models[0].petl['lora'].blocks['0']['q'].down, models[1].petl['lora'].blocks['0']['q'].down)
