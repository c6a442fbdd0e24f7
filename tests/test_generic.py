# SPDX-License-Identifier: Apache-2.0
"""What every method must do on every backbone that carries it."""

import copy
import warnings
from dataclasses import replace

import pytest
import torch
from attention_kernels import fused_alone
from cases import BACKBONES, FOREIGN, METHODS, ONE_PER_POINT, PAIR_IDS, PAIRS, REFUSED, features, perturb, real_size
from gpu_autocast import GpuAutocast
from mmengine.model import BaseModule

import mmpetl
from mmpetl.tuning import find_backbone

warnings.filterwarnings('ignore')
#: Models of timm and transformers that carry all that ViT carries. By default one method per point runs on each, and every
#: other on one of them in turn; tests/backbones/test_sister_classes.py has all others in one short test each.
WIDE = [b for b in FOREIGN if not b.only]


def _waits(case, backbone):
    """Whether a pair waits for ``-m slow``."""
    in_turn = backbone not in WIDE or case.name in ONE_PER_POINT or WIDE[METHODS.index(case) % len(WIDE)] is backbone
    return case.is_slow(backbone) or not in_turn


PARAMS = [pytest.param(case, b, marks=pytest.mark.slow if _waits(case, b) else ()) for case, b in PAIRS]
pairs = pytest.mark.parametrize('case, backbone', PARAMS, ids=PAIR_IDS)
# Compiling takes seconds. By default every method does it on the first backbone that takes it, one method per point on
# Swin and VideoMAE, and two on the backbones that share their blocks: CLIP, Video Swin, and those of timm and transformers.
OWN_BLOCKS = ('vit', 'videomae', 'swin')
FIRST = {case.name: backbone.name for case, backbone in reversed(PAIRS)}
compiled = pytest.mark.parametrize(
    'case, backbone',
    [p if FIRST[case.name] == b.name or case.name in (b.graphs or (
        ONE_PER_POINT if b.name in OWN_BLOCKS else ('LoRA', 'VPT'))) else
     pytest.param(case, b, marks=pytest.mark.slow) for p, (case, b) in zip(PARAMS, PAIRS)
     if not b.like or case.name in ONE_PER_POINT],
    ids=lambda value: value.name)
backbones = pytest.mark.parametrize('backbone', [*BACKBONES, *FOREIGN], ids=lambda b: b.name)


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def _build(case, backbone, **options):
    torch.manual_seed(0)
    model = backbone.build(case.petl, **options)
    for name, parameter in model.named_parameters():
        if not name.startswith('petl.') and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    model.petl.refresh()
    return model


def _loss(output):
    weights = torch.linspace(-1, 1, features(output)[0].numel()).view_as(features(output)[0])
    return (features(output) * weights).square().mean()


# -- the backbones alone ----------------------------------------------------------------------------------------------


@backbones
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_empty_backbone_equals_upstream(backbone, dtype, tolerance):
    plain = backbone.build_upstream()
    perturb(plain, 0.1)
    ours = backbone.build()
    assert set(ours.state_dict()) == set(plain.state_dict()), 'no key may be added or lost'
    ours.load_state_dict(plain.state_dict(), strict=True)
    x = backbone.inputs(dtype=dtype)
    plain, ours = BaseModule.to(plain, dtype), BaseModule.to(ours, dtype)
    plain.eval(), ours.eval()
    with torch.no_grad():
        expected, got = features(plain(x)), features(ours(x))
    assert (got - expected).abs().max() <= tolerance * max(1, expected.abs().max())


@backbones
def test_real_size_has_upstream_keys(backbone):
    with real_size():
        plain = backbone.upstream(**backbone.real)
        ours = mmpetl.registry.MODELS.build({'type': backbone.type, **backbone.real})
    assert {k: v.shape for k, v in plain.state_dict().items()} == {k: v.shape for k, v in ours.state_dict().items()}


@backbones
def test_trunk_gradient_equals_upstream(backbone):
    plain = backbone.build_upstream()
    perturb(plain, 0.1)
    ours = backbone.build(tune=['*'])
    ours.load_state_dict(plain.state_dict())
    plain, ours = plain.double(), ours.double()
    plain.eval(), ours.eval()
    x = backbone.inputs(dtype=torch.float64)
    for model in (plain, ours):
        _loss(model(x)).backward()
    expected = {n: p.grad for n, p in plain.named_parameters()}
    for name, parameter in ours.named_parameters():
        if expected[name] is not None:
            assert (parameter.grad - expected[name]).abs().max() <= 1e-10, name


# -- every method on every backbone -----------------------------------------------------------------------------------


@pytest.mark.parametrize('case, backbone', REFUSED, ids=[f'{c.name}-{b.name}' for c, b in REFUSED])
def test_refused_by_name(case, backbone):
    with pytest.raises(ValueError) as error:
        backbone.build(case.petl)
    message = str(error.value)
    assert any(cfg['type'].lower() in message.lower() for cfg in case.petl), message
    assert '\n' not in message


@pairs
def test_start(case, backbone):
    """The promised identity holds, also after MMEngine's initialisers have re-drawn every linear layer of the base."""
    model = backbone.build(case.petl, init_cfg=[dict(type='TruncNormal', layer='Linear', std=0.02, bias=0.)])
    before = {n: p.clone() for n, p in model.petl.named_parameters()}
    model.init_weights()
    for name, parameter in model.petl.named_parameters():
        spread = before[name].std() if before[name].numel() > 30 else 0
        assert (parameter == 0).all() == (before[name] == 0).all(), f'{name} was re-drawn by the base initialisers'
        if spread > 0 and not any(part in name for part in case.from_base):
            assert 0.5 < parameter.std() / spread < 2, f'{name} was re-drawn with another spread'
    model.eval()
    x = backbone.inputs()
    with torch.no_grad():
        got = features(model(x))
        with mmpetl.disabled(model):
            plain = features(model(x))
    equal = got.shape == plain.shape and (got - plain).abs().max() <= 1e-5 * max(1, plain.abs().max())
    assert bool(equal) == case.identity


@pairs
def test_disabled_equals_stock(case, backbone):
    model = _build(case, backbone)
    perturb(model.petl)
    plain = backbone.build_upstream()
    trunk = {k: v for k, v in model.state_dict().items() if not k.startswith('petl.')}
    plain.load_state_dict(trunk, strict=True)
    plain.eval(), model.eval()
    x = backbone.inputs()
    with torch.no_grad(), mmpetl.disabled(model):
        assert (features(model(x)) - features(plain(x))).abs().max() <= 1e-5
        keys = {k for k in model.state_dict() if not k.startswith('petl.')}
    assert keys == set(plain.state_dict())
    with torch.no_grad():
        again = features(model(x))
    assert again.shape != features(
        plain(x)).shape or (again - features(plain(x))).abs().max() > 1e-4, 'the method has no effect'


@pairs
def test_only_methods_get_gradients_and_all_of_them_do(case, backbone):
    model = _build(case, backbone)
    perturb(model.petl)
    model.train()
    _loss(model(backbone.inputs())).backward()
    assert not [
        n for n, p in model.named_parameters() if not n.startswith('petl.') and (p.requires_grad or p.grad is not None)
    ]
    without = [
        n for n, p in model.petl.named_parameters() if p.grad is None and not any(w in n for w in case.without_gradient)
    ]
    assert not without
    assert all(torch.isfinite(p.grad).all() for p in model.petl.parameters() if p.grad is not None)


@pairs
def test_every_trainable_tensor_moves_in_two_steps(case, backbone):
    model = _build(case, backbone).double()
    model.train()
    optimizer = torch.optim.AdamW(model.petl.parameters(), lr=1e-2, weight_decay=0.)
    before = {n: p.detach().clone() for n, p in model.petl.named_parameters()}
    for step in range(2):
        optimizer.zero_grad()
        _loss(model(backbone.inputs(seed=step, dtype=torch.float64))).backward()
        optimizer.step()
    still = [
        n for n, p in model.petl.named_parameters()
        if torch.equal(p, before[n]) and not any(w in n for w in case.without_gradient)
    ]
    assert not still


@pairs
def test_samples_do_not_see_each_other(case, backbone):
    model = _build(case, backbone).double()
    perturb(model.petl)
    model.eval()
    x = backbone.inputs(3, dtype=torch.float64)
    with torch.no_grad():
        together, alone = features(model(x)), features(model(x[:1]))
    assert (together[:1] - alone).abs().max() <= 1e-10


@pairs
def test_merge(case, backbone):
    model = _build(case, backbone)
    perturb(model.petl, 0.02)
    model.eval()
    x = backbone.inputs()
    if not case.folds or case.name in backbone.unmerged:
        before = {k: v.clone() for k, v in model.state_dict().items()}
        with pytest.raises(ValueError, match='cannot be merged|no bias that could hold'):
            mmpetl.merge(model)
        assert all(torch.equal(v, before[k])
                   for k, v in model.state_dict().items()), 'a refused merge must change nothing'
        return
    with torch.no_grad():
        expected = features(model(x))
    report = mmpetl.merge(model, verify=True)
    plain = backbone.build_upstream()
    plain.load_state_dict(model.state_dict(), strict=True)
    plain.eval()
    with torch.no_grad():
        got = features(plain(x))
    assert report.max_difference is not None and report.max_difference <= 1e-4
    assert (got - expected).abs().max() <= 2e-5 * max(1, expected.abs().max())


@pairs
def test_adapter_file_round_trip(case, backbone, tmp_path):
    model = _build(case, backbone)
    perturb(model.petl)
    model.eval()
    x = backbone.inputs()
    with torch.no_grad():
        expected = features(model(x))
    path = str(tmp_path / 'a.safetensors')
    mmpetl.save_adapter(model, path)
    other = _build(case, backbone)
    mmpetl.load_adapter(other, path)
    other.eval()
    with torch.no_grad():
        assert torch.equal(features(other(x)), expected)
    with torch.no_grad():
        next(p for n, p in other.named_parameters() if not n.startswith('petl.')).add_(1e-3)
    with pytest.raises(ValueError, match='wrong base'):
        mmpetl.load_adapter(other, path)


@pairs
def test_copies_are_independent(case, backbone):
    model = _build(case, backbone)
    perturb(model.petl)
    model.eval()
    other = copy.deepcopy(model)
    x = backbone.inputs()
    with torch.no_grad():
        before = features(model(x))
        perturb(other.petl, 0.5, seed=7)
        assert torch.equal(features(model(x)), before)
        assert not torch.equal(features(other(x)), before)
    assert find_backbone(other)[0].petl.backbone is other


@pairs
def test_bf16_autocast(case, backbone):
    """Also with the lists of a GPU, where norms and sums give float32; and all attention is for its fused kernels."""
    model = _build(case, backbone)
    perturb(model.petl, 0.02)
    model.train()
    x = backbone.inputs()

    def step():
        torch.manual_seed(0)
        model.zero_grad()
        output = features(model(x))
        return output, _loss(output)

    def gradients():
        return torch.cat([p.grad.flatten() for p in model.petl.parameters() if p.grad is not None])

    full, loss = step()
    loss.backward()
    wanted = gradients()
    with torch.autocast('cpu', torch.bfloat16), fused_alone() as refused:
        half, loss = step()
    loss.backward()
    here = gradients()
    with GpuAutocast(), torch.autocast('cpu', torch.bfloat16):
        there, loss = step()
    loss.backward()
    assert not refused
    for found in (half, there):
        assert (found.float() - full).norm() <= 0.1 * full.norm()
    assert all(p.grad.dtype == torch.float32 for p in model.petl.parameters() if p.grad is not None)
    error = (here - wanted).norm()
    assert error <= 0.5 * wanted.norm() and (gradients() - wanted).norm() <= 2 * error + 0.1 * wanted.norm()


@pairs
def test_recomputed_blocks_give_equal_gradients(case, backbone):
    gradients = []
    # A part of what 'lightest' does: on other backbones than the five, one method tells.
    light = () if backbone.like and case.name != 'LoRA' else (dict(memory='light'), )
    for options in (dict(), dict(with_cp=True), *light, dict(memory='lightest')):
        model = _build(case, backbone, **options).double()
        perturb(model.petl)
        model.train()
        torch.manual_seed(3)
        _loss(model(backbone.inputs(dtype=torch.float64))).backward()
        gradients.append({n: p.grad for n, p in model.petl.named_parameters() if p.grad is not None})
    for other in gradients[1:]:
        assert gradients[0].keys() == other.keys() and gradients[0]
        for name, gradient in gradients[0].items():
            assert (gradient - other[name]).abs().max() <= 1e-9, name


def _short(value, key=''):
    """The arguments of a backbone of three blocks (Swin: four) for one of two (three): a first and a last one stay, and
    in Swin a rolled one. What compiling takes grows with the blocks."""
    if isinstance(value, dict):
        return {k: _short(v, k) for k, v in value.items()}
    return dict(num_layers=2, depth=2, num_hidden_layers=2, depths=[2, 1]).get(key, value)


@compiled
def test_one_compiled_graph(case, backbone):
    model = _build(case, replace(backbone, kwargs=_short(backbone.kwargs)))
    perturb(model.petl)
    model.eval()
    x = backbone.inputs()
    with torch.no_grad():
        expected = features(model(x))
        torch._dynamo.reset()
        compiled = torch.compile(model, backend='eager', fullgraph=True)
        assert (features(compiled(x)) - expected).abs().max() <= 1e-5
