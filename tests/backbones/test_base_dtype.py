# SPDX-License-Identifier: Apache-2.0
"""``base_dtype='bf16'``: the bits of autocast, half the memory, adapters that load on either form of the base."""

import copy
import logging
import pickle
import sys
import warnings
from pathlib import Path

import pytest
import torch
from cases import BACKBONE, BACKBONES, CASE, FOREIGN, METHODS, ONE_PER_POINT, features, perturb
from mmengine.runner import load_checkpoint, save_checkpoint

import mmpetl
from mmpetl.costs.memory import on_meta
from mmpetl.costs.plan import plan
from mmpetl.registry import MODELS
from mmpetl.training.build import read_config
from mmpetl.training.parallel import check_base_dtype

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / 'benchmarks'))
import kernels  # noqa: E402

warnings.filterwarnings('ignore')
#: Methods that read a weight of the base itself.
READERS = ('DoRA', 'DoRA + LoRA')
#: Methods whose prompts or queries pass frozen norms: a float32 base rounds their weights with the others.
NORMED = ('VPT', 'E2VPT', 'VPT + LoRA', 'SynQT', 'VQT')
BF16 = 'bf16'
VIT = BACKBONE['vit']
ROWS = [pytest.param(case, b, marks=() if b.name == 'vit' or case.name == 'LoRA' else pytest.mark.slow)
        for b in [*BACKBONES, *FOREIGN] for case in METHODS
        if b.name in case.on or b.like and case.name in ONE_PER_POINT and b.carries(case)]


def step(model, x, half=True):
    """Feature and gradients of one step."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(3)  # of dropout
    with torch.autocast('cpu', torch.bfloat16, enabled=half):
        y = features(model(x))
    y.float().square().sum().backward()
    return [y.detach().float()] + [p.grad for p in model.parameters() if p.grad is not None]


def pair(case, backbone, **options):
    """The same model with a float32 and with a stored base."""
    torch.manual_seed(0)
    full = backbone.build(case.petl, **options)
    perturb(full)
    torch.manual_seed(0)
    half = backbone.build(case.petl, base_dtype=BF16, **options)
    half.load_state_dict(full.state_dict())
    return full, half


@pytest.mark.parametrize('case, backbone', ROWS, ids=lambda value: value.name)
def test_the_bits_of_autocast(case, backbone):
    full, half = pair(case, backbone)
    assert half.petl.stored and half.petl.base_fingerprint() == full.petl.base_fingerprint()
    full.train(), half.train()
    x = backbone.inputs()
    step(full, x), step(half, x)  # copies of the methods' weights settle, and with them the order of sums
    wanted, again, got, own = step(full, x), step(full, x), step(half, x), step(half, x, half=False)
    assert len(wanted) == len(got)
    if case.name in NORMED:
        every, stored = (torch.cat([t.flatten() for t in found]) for found in (wanted, got))
        assert (every - stored).norm() <= 0.02 * every.norm()
    for a, twice, b, c in zip(wanted, again, got, own):
        if not torch.equal(a, twice):  # torch's gradient of a depthwise convolution in bfloat16, on the CPU
            assert case.name == 'ST-Adapter' and a.dim() > 3
            continue
        assert torch.equal(b, c), 'a pass under its own autocast is another one'
        if case.name in READERS:
            assert (a - b).norm() <= 0.1 * a.norm()
        elif case.name not in NORMED:
            assert torch.equal(a, b)
    if case.name in READERS:
        assert (wanted[0] - got[0]).norm() <= 0.02 * wanted[0].norm()


@pytest.mark.parametrize('backbone', [*BACKBONES, *FOREIGN], ids=lambda b: b.name)
def test_what_is_stored(backbone):
    """Weights that products read, and nothing that autocast does not round."""
    model = backbone.build(CASE['LoRA'].petl, base_dtype=BF16)
    types = {n: p.dtype for n, p in model.named_parameters()}
    assert {n for n, t in types.items() if t is torch.bfloat16} == model.petl.stored
    norms = {id(p) for m in model.modules() if 'norm' in type(m).__name__.lower() for p in m.parameters()}
    for name, parameter in model.named_parameters():
        word = any(w in name for w in ('petl.', 'pos_embed', 'position', 'cls', 'table', 'token', 'gamma', 'lambda'))
        if word and 'lmhra' not in name and 'projection' not in name and 'patch' not in name or id(parameter) in norms:
            assert parameter.dtype is torch.float32, name
    assert all(t.dtype is torch.bfloat16 for block in model.petl.blocks for op in block.spec.ops
               for t in block.op_parameters(op) if t is not None)


def test_half_the_memory():
    with on_meta():
        for kind, arch in (('VisionTransformer', dict(arch='base')), ('VideoMAE', {})):
            sizes = [sum(p.numel() * p.element_size() for p in MODELS.build(dict(
                type=f'mmpetl.{kind}', base_dtype=d, **arch)).parameters()) for d in (None, BF16)]
            assert 0.5 < sizes[1] / sizes[0] < 0.51
            if kind == 'VisionTransformer':
                text = (Path(__file__).parents[2] / 'docs/configs.md').read_text()
                assert f'(ViT-B {sizes[0] / 2**20:.0f} -> {sizes[1] / 2**20:.0f} MiB' in text


@pytest.fixture
def base(tmp_path):
    """A file of a float32 base, and models on it."""
    path = tmp_path / 'base.pth'
    upstream = VIT.build_upstream()
    perturb(upstream)
    torch.save(upstream.state_dict(), path)
    logging.getLogger('mmengine').setLevel(logging.ERROR)

    def build(dtype=None, method='LoRA', file=True, **options):
        more = dict(init_cfg=dict(type='Pretrained', checkpoint=str(path))) if file else {}
        model = VIT.build(CASE[method].petl, base_dtype=dtype, **more, **options)
        if file:
            model.init_weights()
        model.eval()
        return model

    build.path = path
    return build


def same(one, other):
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        return torch.equal(features(one(VIT.inputs())), features(other(VIT.inputs())))


@pytest.mark.parametrize('trained', [None, BF16])
@pytest.mark.parametrize('served', [None, BF16])
def test_adapters_load_on_either_form(base, tmp_path, trained, served):
    source, path = base(trained), str(tmp_path / 'a.safetensors')
    perturb(source.petl)
    mmpetl.save_adapter(source, path)
    model = base(served)
    mmpetl.load_adapter(model, path)
    assert same(model, source)
    late = base(served, file=False)  # the file comes in by hand
    late.load_state_dict(torch.load(base.path, weights_only=True), strict=False)
    mmpetl.load_adapter(late, path)
    assert same(late, source)
    bare = VIT.build_upstream()  # attached over weights that are there
    bare.load_state_dict(torch.load(base.path, weights_only=True))
    mmpetl.attach(bare, source.petl.configs.values(), base_dtype=torch.bfloat16)
    bare.eval()
    mmpetl.load_adapter(bare, path)
    assert same(bare, source)
    with pytest.raises(ValueError, match='wrong base'):
        mmpetl.load_adapter(base(served, file=False), path)


def test_the_base_is_known_through_copies_and_checkpoints(base, tmp_path):
    known, model = base().petl.base_fingerprint(), base(BF16)
    assert copy.deepcopy(model).petl.base_fingerprint() == known
    assert pickle.loads(pickle.dumps(model)).petl.base_fingerprint() == known
    save_checkpoint(dict(state_dict=model.state_dict()), str(tmp_path / 'epoch.pth'))
    again = base(BF16, file=False)
    load_checkpoint(again, str(tmp_path / 'epoch.pth'), 'cpu', strict=True)
    assert again.petl.base_fingerprint() == known and same(again, model)
    with torch.no_grad():
        model.layers[0].ffn.layers[1].weight[0, 0] += 1
    assert model.petl.base_fingerprint() != known, 'other weights are another base'
    wide = base(file=False)
    rounded = base(BF16, file=False)
    state = {k: v.bfloat16() for k, v in torch.load(base.path, weights_only=True).items()}
    for m in (wide, rounded):
        m.load_state_dict(state, strict=False)
    assert wide.petl.base_fingerprint() == rounded.petl.base_fingerprint(), 'a file in half precision is a base too'


@pytest.mark.parametrize('method', ['LoRA', 'SSF', 'DoRA', 'OFT'])
def test_merging_gives_float32(base, method):
    full, half = base(method=method), base(BF16, method)
    perturb(full.petl)
    half.petl.load_state_dict(full.petl.state_dict())
    mmpetl.merge(full), mmpetl.merge(half)
    assert all(torch.equal(a, b) for a, b in zip(full.state_dict().values(), half.state_dict().values()))
    assert not half.petl.stored and all(p.dtype is torch.float32 for p in half.parameters())


def test_merging_without_the_file_and_in_vain(base):
    full, half = base(), base(BF16)
    perturb(full.petl)
    half.petl.load_state_dict(full.petl.state_dict())
    before, known = {k: v.clone() for k, v in half.state_dict().items()}, half.petl.base_fingerprint()
    with pytest.raises(ValueError, match='unchanged'):
        mmpetl.merge(half, tolerance=1e-30)
    assert all(torch.equal(v, before[k]) and v.dtype is before[k].dtype for k, v in half.state_dict().items())
    assert half.petl.base_fingerprint() == known
    half.init_cfg = None
    mmpetl.merge(full), mmpetl.merge(half)
    for a, b in zip(full.state_dict().values(), half.state_dict().values()):
        assert (a - b).abs().max() <= 2**-8 * a.abs().max()


def test_what_trains_is_float32(base):
    model = base(BF16, tune=['*bias*', '*ln*', 'layers.2.*'])
    for name, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.dtype is torch.float32, name
    assert model.layers[0].attn.qkv.weight.dtype is torch.bfloat16
    assert model.layers[2].attn.qkv.weight.dtype is torch.float32


def test_a_bank_switches_what_trains(base, tmp_path):
    tuned = base(tune=['*bias*'])
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter)
    mmpetl.save_adapter(tuned, str(tmp_path / 'tuned.safetensors'))
    model = base(BF16)
    plain, bias = copy.deepcopy(model), model.layers[0].attn.qkv.bias
    bank = mmpetl.AdapterBank(model, 'plain')
    bank.add_file('tuned', str(tmp_path / 'tuned.safetensors'))
    model.eval()
    assert bias.dtype is torch.float32 and same(model, tuned)
    bank.switch('plain')
    assert bias.dtype is torch.bfloat16 and same(model, plain)


def test_other_precisions_around_it(base):
    full, half = base(), base(BF16)
    with torch.no_grad(), torch.autocast('cpu', torch.float16):
        a, b = (features(m(VIT.inputs())) for m in (full, half))
    assert (a - b).norm() < 0.02 * a.norm()
    with torch.no_grad():
        assert features(half(VIT.inputs())).dtype is torch.float32
        compiled = torch.compile(copy.deepcopy(half), backend='eager')
        assert torch.equal(features(compiled(VIT.inputs())), features(half(VIT.inputs())))
    with pytest.raises(Exception, match='channels'):
        half(torch.zeros(2, 5, 32, 32))
    assert not torch.is_autocast_enabled('cpu'), 'a pass that fails leaves autocast'


@pytest.mark.parametrize('value', ['fp16', torch.float16, 16, ['bf16'], 'half'])
def test_other_values_are_refused(value):
    with pytest.raises(ValueError, match="base_dtype=.*: give 'bf16'"):
        VIT.build([], base_dtype=value)


def test_nothing_to_store_is_refused():
    with pytest.raises(ValueError, match='no float32 weights to store.*float64'):
        mmpetl.attach(VIT.build_upstream().double(), base_dtype=BF16)


def test_sharding_refuses_it(base):
    with pytest.raises(ValueError, match="FSDPStrategy: base_dtype='bf16'.*leave base_dtype out"):
        check_base_dtype(base(BF16), 'FSDPStrategy')
    check_base_dtype(base(), 'FSDPStrategy')


def test_no_cast_of_a_stored_weight():
    """What is cast in a step with a stored base is the method's."""
    row = dict(name='LoRA', tiny=CASE['LoRA'].petl)
    wide, _ = kernels.counted(VIT, row)
    half, _ = kernels.counted(VIT, row, base_dtype=BF16)
    assert half.casts <= wide.casts - 3 and half.total < wide.total


def test_a_plan_counts_what_is_stored(tmp_path):
    text = """model = dict(type='mmpretrain.ImageClassifier', backbone=dict(type='mmpetl.VisionTransformer', petl=[dict(
        type='LoRA', rank=2)], {}), head=dict(type='mmpretrain.LinearClsHead', num_classes=2, in_channels=768))"""
    plans = []
    for more in ('', "base_dtype='bf16'"):
        path = tmp_path / f'c{len(more)}.py'
        path.write_text(text.format(more))
        plans.append(plan(read_config(str(path)), 'c', (3, 32, 32)))
    wide, half = plans
    assert half.weight_bytes < 0.52 * wide.weight_bytes and half.activation_bytes == wide.activation_bytes
    assert half.gmac == wide.gmac and half.adapter_bytes == wide.adapter_bytes
    assert any("base_dtype='bf16'" in n for n in half.notes) and not any('base_dtype' in n for n in wide.notes)
