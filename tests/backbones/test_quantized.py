# SPDX-License-Identifier: Apache-2.0
"""``base_dtype='int8'`` and ``'nf4'``: a base in 8 or 4 bits is the base of its rounded weights, smaller, and no other
base."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from cases import BACKBONE, BACKBONES, CASE, FOREIGN, METHODS, features, perturb
from mmengine.config import Config
from torch import nn
from toy_model import images, write_base, write_config

import mmpetl
from mmpetl.adapters.bank import AdapterBank
from mmpetl.backbones.quantized import INT8, LEVELS, NF4, QuantizedWeight, group_of, is_quantized, put, rounded
from mmpetl.costs.memory import on_meta
from mmpetl.costs.plan import plan
from mmpetl.registry import MODELS
from mmpetl.training import run
from mmpetl.training.build import build_model, load_trained, read_config
from mmpetl.training.parallel import check_base_dtype

warnings.filterwarnings('ignore')
VIT = BACKBONE['vit']
ROWS = [pytest.param(case, b, marks=() if b.name == 'vit' or case.name == 'LoRA' else pytest.mark.slow)
        for b in BACKBONES for case in METHODS if b.name in case.on]
ROWS += [pytest.param(CASE['LoRA'], b) for b in FOREIGN if b.carries(CASE['LoRA'])]
FORMS = {'int8': INT8, 'nf4': NF4}
#: In 4 bits by default what reads weights in a way of its own.
OFTEN = ('LoRA', 'DoRA', 'PiSSA', 'BOFT', 'RLRR', 'LST')


def step(model, x):
    """Feature and gradients of one step."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)  # of dropout
    y = features(model(x))
    y.square().sum().backward()
    return [y.detach()] + [p.grad for p in model.parameters() if p.grad is not None]


# -- the leaf ---------------------------------------------------------------------------------------------------------


def test_rounding_to_8_bits():
    """At most half a step per number; what was rounded stays as it is, bit by bit."""
    torch.manual_seed(0)
    for weight in (torch.randn(50, 30), torch.randn(3, 4) * 1e-20, torch.zeros(2, 3), torch.full((2, 2), 127.)):
        numbers, factor = rounded(weight)
        assert numbers.dtype is torch.int8 and int(numbers.abs().max()) <= 127
        back = QuantizedWeight(numbers, factor, weight.shape[1]).full()
        assert ((back - weight).abs() <= factor / 2 * (1 + 1e-6)).all()
        again = QuantizedWeight.of(back)
        assert torch.equal(again.numbers, numbers) and torch.equal(again.full(), back)


def test_rounding_to_4_bits():
    """The published levels; of a group each weight goes to the nearest; what was rounded stays as it is, bit by bit."""
    published = [-1., -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
                 -0.18477343022823334, -0.09105003625154495, 0., 0.07958029955625534, 0.16093020141124725,
                 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.]
    assert (LEVELS - torch.tensor(published)).abs().max() < 2e-5 and LEVELS[7] == 0
    torch.manual_seed(0)
    for weight in (torch.randn(50, 128), torch.randn(3, 96) * 1e-20, torch.zeros(2, 32), torch.full((2, 3), 127.),
                   torch.randn(4, 30), torch.tensor([[0., -3.] * 32])):
        numbers, factor = rounded(weight, NF4)
        size = group_of(weight.shape[1])
        assert numbers.dtype is torch.uint8 and factor.shape[1] == -(-weight.shape[1] // size)
        back = QuantizedWeight(numbers, factor, weight.shape[1]).full()
        spread = factor.float().repeat_interleave(size, 1)[:, :weight.shape[1]]
        nearest = (weight[..., None] - spread[..., None] * LEVELS).abs().amin(-1)
        assert ((back - weight).abs() <= nearest * (1 + 1e-5) + 1e-30).all()
        # bfloat16, rounded up: at most a 128th too large
        assert (spread >= weight.abs()).all() and (back.abs().amax(1) <= weight.abs().amax(1) * (1 + 1 / 128)).all()
        again = QuantizedWeight.of(back, NF4)
        assert torch.equal(again.numbers, numbers) and torch.equal(again.full(), back)


def test_the_error_that_the_docs_state():
    """Of weights drawn from a normal distribution, relative to their norm."""
    text = (Path(__file__).parents[2] / 'docs/configs.md').read_text()
    weight = torch.randn(768, 768, generator=torch.Generator().manual_seed(0))
    for name, form in FORMS.items():
        error = (QuantizedWeight.of(weight, form).full() - weight).norm() / weight.norm()
        assert f'{name} {100 * float(error):.2g} %' in text, (name, float(error))


@pytest.mark.parametrize('form', FORMS.values(), ids=list(FORMS))
def test_every_operation_sees_a_float(form):
    layer = nn.Linear(8, 12).requires_grad_(False)
    put(layer, 'weight', layer.weight, form)
    weight, full = layer.weight, layer.weight.full()
    assert isinstance(weight, nn.Parameter) and is_quantized(weight) and not is_quantized(full)
    x = torch.randn(2, 3, 8, requires_grad=True)
    for got, wanted in ((layer(x), nn.functional.linear(x, full, layer.bias)), (weight * 2, full * 2), (weight.t() @ full, full.t() @ full),
                        (weight.norm(dim=1), full.norm(dim=1)), (torch.cat([weight, weight]), torch.cat([full, full])),
                        (weight[2:5], full[2:5]), (weight[:, 1:3], full[:, 1:3]), (weight.chunk(3)[1], full.chunk(3)[1]),
                        (weight.double(), full.double()), (weight.view(3, 4, 8), full.view(3, 4, 8)),
                        (weight.transpose(0, 1).contiguous(), full.t()), (weight[torch.tensor([3, 1])], full[[3, 1]])):
        assert torch.equal(got + 0, wanted + 0)
    with torch.no_grad():
        weight.copy_(full * 3)
        assert torch.equal(weight.full(), QuantizedWeight.of(full * 3, form).full())
        nn.init.constant_(weight, 2.)
        assert torch.allclose(weight.full(), torch.full((12, 8), 2.), rtol=1e-4)
    layer.load_state_dict(dict(weight=full, bias=layer.bias))
    assert torch.equal(copy.deepcopy(layer).weight.full(), full) and is_quantized(copy.deepcopy(layer).weight)
    assert layer.double().weight.dtype is torch.float64


@pytest.mark.parametrize('form', FORMS)
def test_the_backward_pass_keeps_few_bits(form):
    """No float32 copy of a frozen weight is kept between forward and backward pass, with autocast or without."""
    for half in (False, True):
        model = VIT.build(CASE['LoRA'].petl, base_dtype=form)
        model.train()
        widths = {tuple(p.shape) for p in model.parameters() if is_quantized(p)}
        kept = []

        def keep(tensor, kept=kept):
            kept.append(tensor)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), torch.autocast(
                'cpu', torch.bfloat16, enabled=half):
            features(model(VIT.inputs())).float().sum().backward()
        dense = [t for t in kept if not is_quantized(t) and (tuple(t.shape) in widths or tuple(t.shape)[::-1] in widths)]
        assert not dense and any(is_quantized(t) for t in kept), [tuple(t.shape) for t in dense]


# -- backbones --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('case, backbone', ROWS, ids=lambda value: value.name)
def test_it_is_the_base_of_its_rounded_weights(case, backbone):
    """Outputs and gradients are those of a float32 base that holds the rounded weights."""
    check_base_of_rounded_weights(case, backbone, 'int8')


@pytest.mark.parametrize('case, backbone', [
    pytest.param(*row.values, marks=() if row.values[0].name in OFTEN and row.values[1].name == 'vit' else pytest.mark.slow)
    for row in ROWS], ids=lambda value: value.name)
def test_it_is_the_base_of_its_weights_in_4_bits(case, backbone):
    check_base_of_rounded_weights(case, backbone, 'nf4')


def check_base_of_rounded_weights(case, backbone, form):
    torch.manual_seed(0)
    full = backbone.build(case.petl)
    perturb(full)
    small = backbone.build(case.petl, base_dtype=form)
    small.load_state_dict(full.state_dict())
    assert small.petl.stored and {n for n, p in small.named_parameters() if is_quantized(p)} == small.petl.stored
    full.load_state_dict(small.state_dict())
    for a, b in zip(full.petl.parameters(), small.petl.parameters()):
        b.data.copy_(a)  # of starts that follow from the base
    full.train(), small.train()
    x = backbone.inputs()
    step(full, x), step(small, x)
    wanted, got = step(full, x), step(small, x)
    assert len(wanted) == len(got)
    for a, b in zip(wanted, got):
        assert (a - b).abs().max() <= 1e-5 * max(1, a.abs().max())


@pytest.mark.parametrize('number, backbone', enumerate([*BACKBONES, *FOREIGN]), ids=lambda b: getattr(b, 'name', ''))
def test_what_is_stored(number, backbone):
    """The matrices of all ops, which are nearly all of a base; nothing that trains."""
    # In turns: which form it is makes no difference to what is found.
    model = backbone.build(CASE['LoRA'].petl, base_dtype=list(FORMS)[number % 2])
    for block in model.petl.blocks:
        for op in block.spec.ops:
            weight, bias = block.op_parameters(op)
            assert is_quantized(weight) and not is_quantized(bias), op
    assert not any(is_quantized(p) for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize('form, part', [('int8', 0.26), ('nf4', 0.14)])
def test_a_part_of_the_memory(form, part):
    with on_meta():
        sizes = []
        for dtype in (None, form):
            model = MODELS.build(dict(type='mmpetl.VisionTransformer', arch='base', base_dtype=dtype))
            sizes.append(sum(p.nbytes_stored if is_quantized(p) else 4 * p.numel() for p in model.parameters()))
    assert part - 0.01 < sizes[1] / sizes[0] < part + 0.01
    text = (Path(__file__).parents[2] / 'docs/configs.md').read_text()
    assert f'(ViT-B {sizes[0] / 2**20:.0f} -> {sizes[1] / 2**20:.0f} MiB)' in text, sizes


@pytest.mark.parametrize('form, most', [('int8', 0.1), ('nf4', 0.5)])
def test_from_python_and_with_timm(form, most):
    timm = pytest.importorskip('timm')
    model = timm.create_model('test_vit', num_classes=3).eval()
    x = torch.randn(2, 3, 160, 160)
    before = model(x).detach()
    mmpetl.attach(model, [dict(type='LoRA', rank=2)], base_dtype=form)
    assert model.head.weight.requires_grad and not is_quantized(model.head.weight)
    after = model(x).detach()
    assert 0 < (after - before).abs().max() < most * before.abs().max()


# -- files, merging ---------------------------------------------------------------------------------------------------


@pytest.fixture(params=['int8', 'nf4'])
def both(tmp_path, request):
    """Config texts on one base file, of a float32 base and one in 8 or 4 bits."""
    write_base(tmp_path)
    configs = {}
    for name in ('fp32', request.param):
        path = write_config(tmp_path, [dict(type='LoRA', rank=2)], f'{name}.py')
        text = path.read_text()
        path.write_text(text.replace('petl=', f"base_dtype={None if name == 'fp32' else name!r}, petl="))
        configs['fp32' if name == 'fp32' else 'small'] = str(path)
    return tmp_path, configs, request.param


def built(config, seed=1):
    torch.manual_seed(0)
    model = build_model(read_config(config))
    model.backbone.init_weights()
    perturb(model.backbone.petl, 0.1, seed)
    perturb(model.head, 0.3, seed)
    return model.eval()


def test_adapters_belong_to_the_full_base(both):
    """The fingerprint is the file's; adapters load from either form onto the other, checkpoints come back bit by bit."""
    folder, configs, form = both
    models = {name: built(config) for name, config in configs.items()}
    full, small = models['fp32'], models['small']
    assert full.backbone.petl.base_fingerprint() == small.backbone.petl.base_fingerprint()
    for source, target in (('fp32', 'small'), ('small', 'fp32'), ('small', 'small')):
        mmpetl.save_adapter(models[source], str(folder / 'a.safetensors'))
        for way in (mmpetl.load_adapter, load_trained):
            other = build_model(read_config(configs[target])).eval()  # its base is loaded from the file
            way(other, str(folder / 'a.safetensors'))
            assert torch.equal(other(images(), mode='tensor'), models[target](images(), mode='tensor')), (source, target)
    torch.save(small.state_dict(), folder / 'whole.pth')
    again = build_model(read_config(configs['small'])).eval()
    again.load_state_dict(torch.load(folder / 'whole.pth', weights_only=False))
    assert torch.equal(again(images(), mode='tensor'), small(images(), mode='tensor'))
    assert again.backbone.petl.base_fingerprint() == full.backbone.petl.base_fingerprint()
    assert type(again.state_dict()['backbone.layers.0.attn.qkv.weight']) is torch.Tensor
    other = built(configs['small'])
    with torch.no_grad():
        other.backbone.layers[0].attn.qkv.weight.mul_(1.1)
    assert other.backbone.petl.base_fingerprint() != full.backbone.petl.base_fingerprint(), 'another base is told apart'


def test_merging_gives_the_full_base(both):
    """With the file of the base at hand the merged model is that of the float32 base; without, that of the rounded."""
    folder, configs, form = both
    full, small = built(configs['fp32']), built(configs['small'])
    rounded_too = built(configs['fp32'])
    rounded_too.load_state_dict(small.state_dict())
    mmpetl.merge(full), mmpetl.merge(small)
    state = small.backbone.state_dict()
    assert all(torch.equal(v, state[k]) and type(state[k]) is torch.Tensor for k, v in full.backbone.state_dict().items())
    small = built(configs['small'])
    (folder / 'base.pth').unlink()
    mmpetl.merge(rounded_too), mmpetl.merge(small, verify=True)
    state = small.backbone.state_dict()
    assert all((v - state[k]).abs().max() < 1e-6 for k, v in rounded_too.backbone.state_dict().items())


def test_it_trains(both):
    """A few steps lower the loss; the base keeps its bits; tuned parameters are whole numbers of no kind."""
    _, configs, form = both
    model = built(configs['small'])
    model.train()
    before = {n: p.full().clone() for n, p in model.named_parameters() if is_quantized(p)}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-2)
    labels, losses = torch.tensor([0, 1]), []
    for _ in range(10):
        loss = nn.functional.cross_entropy(model(images(), mode='tensor'), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(p.full(), before[n]) for n, p in model.named_parameters() if is_quantized(p))
    tuned = VIT.build([], tune=['layers.0.*'], base_dtype=form)
    features(tuned(VIT.inputs())).sum().backward()
    assert all(not is_quantized(p) and p.grad is not None for n, p in tuned.named_parameters() if n.startswith('layers.0.'))
    assert is_quantized(tuned.layers[1].attn.qkv.weight)


def test_banks_on_a_base_in_few_bits(both, tmp_path):
    folder, configs, form = both
    model = built(configs['small'])
    bank, alone = AdapterBank(model, 'first'), {}
    bank.add('tuned', [dict(type='LoRA', rank=2)], tune=['layers.0.attn.*'])
    perturb(model.backbone.petl, 0.1, 4)
    with torch.no_grad():
        model.backbone.layers[0].attn.qkv.weight.mul_(1.5)
    model.eval()
    for name in ('tuned', 'first', None):
        with bank.using(name), torch.no_grad():
            alone[name] = model(images(), mode='tensor').clone()
    for name in ('first', 'tuned', None, 'first', 'tuned'):
        with bank.using(name), torch.no_grad():
            assert torch.equal(model(images(), mode='tensor'), alone[name]), name
    (tmp_path / 'files').mkdir()
    for name in ('tuned', 'first'):
        bank.save(name, str(tmp_path / 'files' / f'{name}.safetensors'))
    served = AdapterBank(built(configs['small']), 'own')
    served.serve(str(tmp_path / 'files'), keep=1)
    with torch.no_grad():
        for row, scores in zip(('first', 'tuned'), served.predict(images()[:1].expand(2, -1, -1, -1), ['first', 'tuned'])):
            assert torch.allclose(scores, alone[row][0], atol=1e-5), row


@pytest.mark.parametrize('form', FORMS)
def test_combining_on_a_base_in_few_bits(form):
    """The change that an adapter makes is not rounded away with the weights that it changes."""
    torch.manual_seed(0)
    bank = AdapterBank(VIT.build([], base_dtype=form))
    bank.add('a', [dict(type='LoRA', rank=2)])
    perturb(bank.backbone.petl, 0.02)
    model, x = bank.model, VIT.inputs()
    model.train(False)
    with torch.no_grad():
        alone = features(model(x))
        bank.combine('c', {'a': 1.})
        combined = features(model(x))
        with bank.using(None):
            plain = features(model(x))
    assert (alone - plain).norm() > 1e-3 and (combined - alone).norm() <= 1e-3 * (alone - plain).norm()


def test_a_plan_counts_what_is_stored(both):
    _, configs, form = both
    plans = {name: plan(read_config(config)) for name, config in configs.items()}
    base = built(configs['small']).backbone
    stored = sum(p.nbytes_stored for p in base.parameters() if is_quantized(p))
    whole = sum(4 * p.numel() for p in base.parameters() if is_quantized(p))
    assert plans['fp32'].weight_bytes - plans['small'].weight_bytes == whole - stored
    assert any(f'base_dtype={form!r}' in note for note in plans['small'].notes)


def test_what_is_refused():
    for value in ('int4', 'int16', 8, torch.int16):
        with pytest.raises(ValueError, match="give 'bf16', 'int8' or 'nf4'"):
            VIT.build([], base_dtype=value)
    for form in FORMS:
        with pytest.raises(ValueError, match=f"base_dtype='{form}' keeps norms"):
            check_base_dtype(VIT.build([], base_dtype=form), 'FSDPStrategy')
        cfg = Config(dict(launcher='pytorch', model=dict(backbone=dict(base_dtype=form))))
        with pytest.raises(ValueError, match=f"--launcher pytorch: base_dtype='{form}' is for one process"):
            run._set_processes(cfg)


@pytest.mark.parametrize('backend', ['aot_eager', pytest.param('inductor', marks=pytest.mark.slow)])
def test_compiled_as_one_graph(backend):
    model, x = VIT.build(CASE['LoRA'].petl, base_dtype='int8'), VIT.inputs(2)
    perturb(model.petl)
    torch._dynamo.reset()
    for ours, compiled in zip(step(model, x), step(torch.compile(model, backend=backend, fullgraph=True), x)):
        torch.testing.assert_close(compiled, ours, atol=1e-5, rtol=1e-5)
