# SPDX-License-Identifier: Apache-2.0
"""SynQT, VQT and LST on real backbones: published arrays, textbook forms, counts, gradients, kept bytes."""

import copy
import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import BACKBONE, BACKBONES, CASE, FOREIGN, VITS, features
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))
import side_reference  # noqa: E402

from mmpetl.backbones import CLIPVisionTransformer, SwinTransformer, VideoMAE, VisionTransformer  # noqa: E402
from mmpetl.methods.lst import LST  # noqa: E402
from mmpetl.methods.qsm import QSM  # noqa: E402
from mmpetl.methods.synqt import Combine, SynQT  # noqa: E402
from mmpetl.methods.vqt import VQT  # noqa: E402
from mmpetl.sites import ALL_OPS, BlockSpec  # noqa: E402

GOLDEN = Path(__file__).parents[3] / 'shared' / 'golden'
ARCH = dict(embed_dims=24, num_layers=3, num_heads=3, feedforward_channels=96)
TINY = dict(arch=ARCH, img_size=24, patch_size=8)
VIT_B = [BlockSpec(i, 0, 768, 12, 3072, extra_tokens=1, grid=(14, 14)) for i in range(12)]
METHODS = {
    'SynQT': dict(type='SynQT', num_tokens=3, feat_scale=.7, mid_dims=6, qsm_mid_dims=4),
    'VQT': dict(type='VQT', num_tokens=2),
    'LST': dict(type='LST', reduction=4),
}


def build(petl, builder=VisionTransformer, dtype=torch.float64, seed=0, **kwargs):
    """A tiny backbone in double precision with every parameter perturbed."""
    torch.manual_seed(seed)
    model = builder(petl=[petl] if petl else [], **{**TINY, **kwargs})
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=.1)
    model.to(dtype).eval()
    return model


def plain(model):
    """The unattached upstream twin of ``model``."""
    from mmpretrain.models import VisionTransformer as Upstream
    twin = Upstream(**TINY)
    twin.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith('petl.')})
    twin.to(model.pos_embed.dtype).eval()
    return twin.requires_grad_(False)


def gradients(feature, parameters):
    torch.manual_seed(5)
    return torch.autograd.grad((feature * torch.randn_like(feature)).sum(), parameters)


def images(seed=1, batch=2, size=24, dtype=torch.float64):
    return torch.randn(batch, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def golden(name):
    path = GOLDEN / f'{name}.npz'
    if not path.exists():
        pytest.skip(f'{path} is not there')
    return {k: torch.from_numpy(v).double() for k, v in np.load(path).items() if v.dtype.kind == 'f'}


# -- published arrays -------------------------------------------------------------------------------------------------


def test_published_qsm():
    g = golden('synqt_qsm')
    module = QSM(24, 4, 6, 0.1, .1, .1).double().eval()
    rename = {k[6:]: k[6:].replace('.mlp.fc', '.fc') for k in g if k.startswith('param.')}
    module.load_state_dict({new: g[f'param.{old}'] for old, new in rename.items()})
    x = g['in.x'].requires_grad_()
    torch.testing.assert_close(module.attn(module.norm1(x)), g['out.attn_branch'], rtol=0, atol=1e-12)
    y = module(x)
    torch.testing.assert_close(y, g['out.y'], rtol=0, atol=1e-12)
    (y * g['in.gout']).sum().backward()
    torch.testing.assert_close(x.grad, g['grad.x'], rtol=0, atol=1e-12)
    found = dict(module.named_parameters())
    assert sorted(rename.values()) == sorted(found)
    for old, new in rename.items():
        torch.testing.assert_close(found[new].grad, g[f'grad.{old}'], rtol=0, atol=1e-12, msg=old)


def test_published_combination():
    g = golden('synqt_combine')
    module = Combine(24, 10, 0.1).double().eval()
    module.load_state_dict({f'gate.{p}': g[f'param.get_weight.fc1.{p}'] for p in ('weight', 'bias')})
    rows = g['in.feat'].requires_grad_()
    y = module(rows)
    torch.testing.assert_close(y, g['out.y'], rtol=0, atol=1e-12)
    (y * g['in.gout']).sum().backward()
    torch.testing.assert_close(rows.grad, g['grad.feat'], rtol=0, atol=1e-12)
    for p in ('weight', 'bias'):
        torch.testing.assert_close(getattr(module.gate, p).grad, g[f'grad.get_weight.fc1.{p}'], rtol=0, atol=1e-12)


# -- textbook forms ---------------------------------------------------------------------------------------------------


def textbook(model, name, image):
    method = model.petl[name.lower()]
    return getattr(side_reference, name.lower())(plain(model), dict(method.named_parameters()), image, method.layers)


VARIANTS = [('SynQT', dict(context=c, checkpoint=p)) for c in ('kv', 'absorb') for p in (False, True)]
VARIANTS += [('VQT', dict(context=c, checkpoint=p)) for c in ('kv', 'absorb') for p in (False, True)]
VARIANTS += [('LST', dict(checkpoint=p)) for p in (False, True)]
VARIANTS += [(name, dict(layers=layers)) for name in METHODS for layers in ('0-1', '1-2')] + [('LST', dict(layers='1'))]


@pytest.mark.parametrize('name,options', VARIANTS, ids=str)
def test_equals_the_textbook_form(name, options):
    """Absorbed attention, keys and values, and recomputation give the outputs and gradients of the plain form."""
    model = build(dict(METHODS[name], **options))
    image, parameters = images(), list(model.petl.parameters())
    feature = model(image)[0]
    want = textbook(model, name, image)
    torch.testing.assert_close(feature, want, rtol=0, atol=1e-10)
    for p, found, right in zip(model.petl.named_parameters(), gradients(feature, parameters),
                               gradients(want, parameters)):
        torch.testing.assert_close(found, right, rtol=1e-8, atol=1e-10, msg=p[0])


@pytest.mark.parametrize('num_tokens', [1, 4])
def test_finite_differences(num_tokens):
    model = build(dict(METHODS['SynQT'], num_tokens=num_tokens))
    image, method = images(), model.petl['synqt']
    for p in (method.feat_scale, method.blocks['0']['qsm'].attn_scale, method.queries, method.head_norm.weight_offset):
        gradient, = gradients(model(image)[0], [p])
        index = tuple(np.unravel_index(int(gradient.abs().argmax()), gradient.shape))
        ends = []
        for step in (1e-5, -2e-5):
            with torch.no_grad():
                p[index] += step
            feature = model(image)[0]
            torch.manual_seed(5)
            ends.append((feature * torch.randn_like(feature)).sum().item())
        assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(gradient[index].item(), rel=1e-5)


@pytest.mark.parametrize('name', ['SynQT', 'VQT'])
def test_recomputation_draws_the_same_dropout(name):
    models = [build(dict(METHODS[name], drop_rate=.3, checkpoint=c)) for c in (False, True)]
    found = []
    for model in models:
        model.train()
        torch.manual_seed(3)
        feature = model(images())[0]
        found.append((feature, *gradients(feature, list(model.petl.parameters()))))
    for a, b in zip(*found):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert not torch.equal(models[0](images())[0], models[0](images())[0])


def test_rows_are_dropped_and_rescaled():
    """Over many draws the mean of the combined rows stays that of no dropping, and the first row is always there."""
    method = SynQT([BlockSpec(i, 0, 8, 2, 32) for i in range(2)], 2, mid_dims=2, qsm_mid_dims=2,
                   drop_rate=0.).double().train()
    rows = torch.randn(1, 7, 8, dtype=torch.float64).expand(40000, -1, -1)
    with torch.no_grad():
        drawn = method._combine(rows)
        whole = method.eval()._combine(rows[:1])
    assert drawn.std(0).min() > 0
    torch.testing.assert_close(drawn.mean(0), whole[0], rtol=0, atol=5 * drawn.std(0).max().item() / 200)
    method.train().row_drop_rate = 0.
    torch.testing.assert_close(method._combine(rows[:1]), whole)


# -- the frozen stream ------------------------------------------------------------------------------------------------


def upstream_forward(model, x):
    """The base's own forward pass, without the side method."""
    stock = next(c for c in type(model).__mro__ if not c.__module__.startswith('mmpetl'))
    return stock.forward(model, x)


@pytest.mark.parametrize('name', METHODS)
def test_frozen_stream_has_no_gradient_and_no_noise(name):
    model = build(METHODS[name], drop_path_rate=.5)
    model.train()
    noisy = build(METHODS[name], drop_path_rate=.5, trunk='train')
    noisy.train()
    reads = [[t for read in m.petl.record(lambda m=m: upstream_forward(m, images())) for t in read.values()]
             for m in (model, model, noisy)]
    assert not any(t.requires_grad for t in reads[0])
    assert all(torch.equal(a, b) for a, b in zip(reads[0], reads[1]))
    assert not all(torch.equal(a, b) for a, b in zip(reads[0], reads[2]))
    model(images())[0].sum().backward()
    assert all((p.grad is not None) == n.startswith('petl.') for n, p in model.named_parameters())


def test_last_block_is_not_updated_for_queries_alone():
    model = build(METHODS['SynQT'])
    calls = []
    for layer in model.layers:
        layer.attn.register_forward_hook(lambda *_: calls.append(1))
    model(images())
    assert len(calls) == len(model.layers) - 1


@pytest.mark.parametrize('backbone', [b.name for b in (*BACKBONES, *FOREIGN)
                                      if (b.like or b.name) in VITS and 'SynQT' not in b.without])
def test_the_second_product_reads_the_mean(backbone, monkeypatch):
    """Of the feed-forward branch SynQT reads the mean over the queries alone; fc2 is linear, so one row per sample goes
    through it. Not where dropout or a method stands there."""
    torch.manual_seed(0)
    row, = (b for b in (*BACKBONES, *FOREIGN) if b.name == backbone)
    model = row.build(petl=CASE['SynQT'].petl).double()
    model.train()
    rows = []
    for block in model.petl.side_blocks():
        p = torch.randn(2, 4, block.spec.dim, dtype=torch.float64, requires_grad=True)
        read = dict(u=torch.randn(2, 9, block.spec.dim, dtype=torch.float64))
        tap, taken = block.block.tap, block.block.tap.input
        monkeypatch.setattr(tap, 'input', lambda op, x, taken=taken: rows.append((op, taken(op, x))) or rows[-1][1])
        found = []
        for averaged, train in ((True, False), (False, False), (True, True)):
            block.block.train(train)
            rows.clear()
            r, h, hh = block.through(p, read, averaged)
            pooled = averaged and not train
            assert {op: x.shape[1] for op, x in rows}['fc2'] == (1 if pooled else 4) and not tap.averaging
            mean = hh if averaged else hh.mean(1, keepdim=True)
            found.append((r, h, mean, *torch.autograd.grad(r.sum() + mean.square().sum(), p)))
        block.block.eval()
        for other in found[1:]:
            for a, b in zip(found[0], other):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_only_what_is_read_is_kept_and_computed():
    """Blocks that are not read leave nothing behind, and blocks behind the last one that is read do not run."""
    for name, layers, kept, runs in [('SynQT', '0-1', [2, 2, 0], 1), ('SynQT', '1-2', [0, 2, 2], 2),
                                     ('LST', '0', [1, 1, 0], 1), ('LST', '1', [1, 0, 1], 2), ('LST', '2', [1, 0, 1], 3),
                                     ('VQT', '0', [1, 0, 1], 3)]:
        model, calls = build(dict(METHODS[name], layers=layers)), []
        for layer in model.layers:
            layer.ffn.layers[0][0].register_forward_hook(lambda *_, calls=calls: calls.append(1))
        reads = model.petl.record(lambda model=model: upstream_forward(model, images()))
        assert ([len(read) for read in reads], len(calls)) == (kept, runs), (name, layers)


@pytest.mark.slow
@pytest.mark.parametrize('name', METHODS)
def test_compiles_to_one_graph_with_gradients(name):
    model = build(dict(METHODS[name], checkpoint=True))
    parameters = list(model.petl.parameters())
    plain_feature = model(images())[0]
    torch._dynamo.reset()
    feature = torch.compile(model, backend='aot_eager', fullgraph=True)(images())[0]
    for a, b in zip((feature, *gradients(feature, parameters)), (plain_feature, *gradients(plain_feature, parameters))):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


# -- counts, widths, initial values -----------------------------------------------------------------------------------


def count(method):
    return sum(p.numel() for p in method.parameters())


@pytest.mark.parametrize('num_tokens,published', [(1, 2622866), (4, 2650514), (16, 2761106)])
def test_synqt_counts(num_tokens, published):
    assert count(SynQT(VIT_B, num_tokens, drop_dead=False)) == published
    assert count(SynQT(VIT_B, num_tokens)) == published - 18469


def test_lst_and_vqt_counts():
    assert count(LST(VIT_B, 8)) == 2376492
    assert count(LST(VIT_B, 4)) == 7406412
    assert count(VQT(VIT_B, 1)) == 9216 and VQT(VIT_B, 1).out_dims == 768 * 13
    assert VQT(VIT_B, 10, layers='6-11').out_dims == 768 * 61


@pytest.mark.parametrize('name,width', [('SynQT', 24), ('VQT', 24 * 7), ('LST', 24)])
@pytest.mark.parametrize('builder', [VisionTransformer, CLIPVisionTransformer])
def test_feature_width(name, width, builder):
    model = build(METHODS[name], builder)
    feature, = model(images())
    assert feature.shape == (2, width) and (model.petl[name.lower()].out_dims or 24) == width
    alone = model(images()[:1])[0]
    torch.testing.assert_close(alone, feature[:1], rtol=0, atol=1e-12)


def test_parameters_without_gradient_are_the_published_dead_ones():
    model = build(dict(METHODS['SynQT'], drop_dead=False))
    model(images())[0].sum().backward()
    dead = {n for n, p in model.petl['synqt'].named_parameters() if p.grad is None}
    assert dead == {'row_weight', *(f'pre_norm.{i}.{p}' for i in range(3) for p in ('weight', 'bias'))}
    for name in METHODS:
        model = build(METHODS[name])
        model(images())[0].square().sum().backward()
        assert all(p.grad is not None for p in model.petl.parameters())


@pytest.mark.parametrize('name', METHODS)
def test_init_weights_restores_the_start(name):
    model = build(METHODS[name], init_cfg=dict(type='TruncNormal', layer='Linear', std=.5))
    method = model.petl[name.lower()]
    reset = method.reset_parameters

    def seeded_reset():
        torch.manual_seed(0)
        reset()

    method.reset_parameters = seeded_reset
    seeded_reset()
    want = copy.deepcopy(method.state_dict())
    model.init_weights()
    assert model.layers[0].attn.qkv.weight.std() > .3
    for key, value in method.state_dict().items():
        torch.testing.assert_close(value, want[key], rtol=0, atol=0, msg=key)


def test_synqt_starts_as_published():
    method = SynQT(VIT_B[:2], 16, feat_scale=.7, attn_scale=.3, ffn_scale=.5)
    assert -1 <= method.queries.min() < -.99 and .99 < method.queries.max() <= 1
    assert method.feat_scale.item() == pytest.approx(.7)
    assert (method.blocks['1']['qsm'].attn_scale.item(), method.blocks['1']['qsm'].ffn_scale.item()) == pytest.approx(
        (.3, .5))
    weight = method.blocks['0']['adapter'].fc1.weight
    assert .99 * 768**-.5 < weight.abs().max() <= 768**-.5


def test_vqt_and_lst_start_as_published():
    bound = (6 / (3 * 256 + 768))**.5
    queries = VQT(VIT_B, 4).queries
    assert .99 * bound < queries.abs().max() <= bound
    assert torch.equal(LST(VIT_B[:2]).gates, torch.zeros(2))


@pytest.mark.parametrize('name', ['vit', 'videomae'])
def test_rungs_start_from_pruned_weights(name, tmp_path):
    """At the base's own width a rung is the block; at half of it, what was made strong is kept, in order."""
    import mmpetl
    backbone = BACKBONE[name]

    def made(**options):
        torch.manual_seed(0)
        return backbone.build([dict(type='LST', init='pruned', **options)])

    whole = made(reduction=1)
    whole.init_weights()
    for block, rung in zip(whole.petl.blocks, whole.petl.lst.rungs.values()):
        for op, part in zip('qkv', rung.qkv.weight.chunk(3)):
            assert torch.equal(part, block.op_parameters(op)[0])
        for op in ('proj', 'fc1', 'fc2'):
            assert torch.equal(getattr(rung, op).weight, block.op_parameters(op)[0]), op
    half, channels = made(reduction=2), torch.arange(1, 32, 2)
    with torch.no_grad():
        for block in half.petl.blocks:
            for op in ('q', 'k', 'v', 'fc1'):
                block.op_parameters(op)[0][:, channels] *= 100
            block.op_parameters('fc1')[0][:32] *= 100
            block.op_parameters('v')[0][[0, 1, 2, 3, 12, 13, 14, 15]] *= 100
    half.petl.loaded()
    block, rung = half.petl.blocks[1], half.petl.lst.rungs['1']
    assert torch.equal(rung.fc1.weight, block.op_parameters('fc1')[0][:32][:, channels])
    values = rung.qkv.weight.chunk(3)[2].unflatten(0, (4, 4))
    assert torch.equal(values[0], block.op_parameters('v')[0][:4][:, channels])
    assert torch.equal(values[1], block.op_parameters('v')[0][12:16][:, channels])
    with torch.no_grad():
        half.petl.lst.gates.add_(0.1)
        half.petl.lst.rungs['1'].fc1.weight.zero_()
    half.petl.loaded()
    assert not half.petl.lst.rungs['1'].fc1.weight.any(), 'a trained ladder is left alone'
    mmpetl.save_adapter(half, str(tmp_path / 'a.safetensors'))
    other = made(reduction=2)
    other.load_state_dict({k: v for k, v in half.state_dict().items() if not k.startswith('petl.')}, strict=False)
    mmpetl.load_adapter(other, str(tmp_path / 'a.safetensors'))
    half.eval(), other.eval()
    assert torch.equal(features(half(backbone.inputs())), features(other(backbone.inputs())))


# -- the head's norm starts from the backbone's -----------------------------------------------------------------------


def head_of(model):
    head = model.petl['synqt'].head_norm
    return (model.ln1.weight + head.weight_offset).detach(), (model.ln1.bias + head.bias_offset).detach()


def test_head_norm_starts_from_loaded_weights_and_survives_resume(tmp_path):
    model, twin = build(None), VisionTransformer(petl=[METHODS['SynQT']], **TINY).double()
    trunk = {k: v for k, v in model.state_dict().items()}
    twin.load_state_dict(trunk, strict=False)
    for found, want in zip(head_of(twin), (model.ln1.weight, model.ln1.bias)):
        torch.testing.assert_close(found, want.detach(), rtol=0, atol=0)
    optimizer = torch.optim.SGD(twin.petl.parameters(), 1.)
    twin(images())[0].square().sum().backward()
    optimizer.step()
    trained = head_of(twin)
    assert not torch.equal(trained[0], model.ln1.weight)
    torch.save(twin.state_dict(), tmp_path / 'whole.pth')
    copies = [copy.deepcopy(twin), VisionTransformer(petl=[METHODS['SynQT']], **TINY).double()]
    copies[1].load_state_dict(torch.load(tmp_path / 'whole.pth', weights_only=True))
    for resumed in copies:
        resumed.eval(), twin.eval()
        for found, want in zip(head_of(resumed), trained):
            torch.testing.assert_close(found, want, rtol=0, atol=0)
        torch.testing.assert_close(resumed(images())[0], twin(images())[0], rtol=0, atol=0)


def test_works_without_a_final_norm():
    model = build(METHODS['SynQT'], final_norm=False)
    assert model(images())[0].isfinite().all()


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize('make,message', [
    (lambda: SynQT(VIT_B, 0), 'num_tokens must be a whole number >= 1'),
    (lambda: SynQT(VIT_B, mid_dims=0), 'mid_dims must be'),
    (lambda: SynQT(VIT_B, context='both'), "'kv' or 'absorb'"),
    (lambda: SynQT(VIT_B, layers='11'), 'at least 2 blocks'),
    (lambda: VQT(VIT_B, -1), 'num_tokens must be'),
    (lambda: LST(VIT_B, 7), 'does not divide'),
    (lambda: LST(VIT_B, 256), 'heads'),
    (lambda: LST(VIT_B, temperature=0), 'temperature'),
    (lambda: LST(VIT_B, init='prune'), "did you mean 'pruned'"),
    (lambda: LST([dataclasses.replace(s, ops=ALL_OPS) for s in VIT_B], init='pruned'), 'gated'),
    (lambda: SynQT([BlockSpec(0, 0, 8, 2, 32), BlockSpec(1, 1, 16, 2, 64)]), 'one width'),
    (lambda: build(METHODS['SynQT'], SwinTransformer, arch='tiny', img_size=32, patch_size=4), 'SynQT'),
])
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- kept bytes -------------------------------------------------------------------------------------------------------


def kept_bytes(run, model):
    """Bytes of unique storages that autograd keeps during ``run()``, without those of parameters, and the output."""
    skip = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    found = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in skip:
            # the reference keeps the address from being used again
            found[storage.data_ptr()] = (storage.nbytes(), storage)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = run()
    return sum(n for n, _ in found.values()), out


def side_bytes(model, image):
    """Kept bytes of a side method; recomputation hides its inputs from the hooks, so the reads are added by hand."""
    method = model.petl.side_method()
    reads = model.petl.record(lambda: upstream_forward(model, image))
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for read in reads for t in read.values()}
    blocks = model.petl.side_blocks()
    hidden = method.memory.recomputes if hasattr(method, 'memory') else method.checkpoint
    seen, out = kept_bytes(lambda: method.on_side(reads, blocks), model)
    means = len(method.layers) * len(image) * 3 * method.specs[0].dim * image.element_size()
    return seen + (sum(storages.values()) + means if hidden else 0), out


def test_the_form_follows_the_memory_setting():
    """Keys and values kept and nothing recomputed by default; normed tokens and recomputation in the memory forms."""
    for memory, reads, again in (('standard', ('k', 'v'), False), ('light', ('u', ), True), ('lightest', ('u', ), True)):
        method = build(METHODS['SynQT'], memory=memory).petl['synqt']
        assert method.side_reads == reads and method.memory.recomputes is again
        assert build(METHODS['VQT'], memory=memory).petl['vqt'].memory.recomputes is again
    method = build(dict(METHODS['SynQT'], context='absorb', checkpoint=True)).petl['synqt']
    assert method.side_reads == ('u', ) and method.memory.recomputes


def test_adapters_of_another_memory_form_are_taken(tmp_path):
    """Such arguments are no difference: adapters of earlier versions, which recomputed by default, load."""
    from mmpetl.adapters.files import load_adapter, save_adapter
    old = build(dict(METHODS['SynQT'], context='absorb', checkpoint=True), dtype=torch.float32)
    save_adapter(old, str(tmp_path / 'a.safetensors'))
    new = build(METHODS['SynQT'], dtype=torch.float32)
    load_adapter(new, str(tmp_path / 'a.safetensors'))
    x = images(dtype=torch.float32)
    torch.testing.assert_close(new(x)[0], old(x)[0], rtol=0, atol=1e-5)


def test_kept_bytes_of_the_light_forms():
    """Reading normed tokens keeps less than keys and values, and recomputation leaves little more than what was
    read."""
    image = images(batch=4, size=64, dtype=torch.float32)
    sizes = {}
    for context in ('kv', 'absorb'):
        for light in (False, True):
            model = build(
                dict(METHODS['SynQT'], context=context, checkpoint=light),
                dtype=torch.float32,
                img_size=64,
                patch_size=4)
            model.train()
            sizes[context, light] = side_bytes(model, image)[0]
    tokens = 257 * 24 * 4 * 4 * 3
    assert sizes['kv', False] > sizes['kv', True] > 2 * tokens
    assert sizes['absorb', False] > sizes['absorb', True] > tokens
    assert sizes['absorb', True] < 1.1 * tokens < .6 * sizes['kv', True]


@pytest.mark.slow
@pytest.mark.parametrize('options,target', [
    (dict(num_tokens=16, context='absorb', checkpoint=True), .054),
    (dict(num_tokens=16, context='kv', checkpoint=True), .106),
    (dict(num_tokens=16, context='absorb', checkpoint=False), .170),
    (dict(num_tokens=16, context='kv', checkpoint=False), .218),
    (dict(num_tokens=1, context='absorb', checkpoint=False), .064),
], ids=str)
def test_kept_bytes_at_base_size(options, target):
    """The card's numbers: against 1,118,395,908 bytes, what full fine-tuning with explicit attention keeps at batch 8."""
    torch.manual_seed(0)
    model = VisionTransformer(arch='base', img_size=224, patch_size=16, petl=[dict(type='SynQT', **options)])
    head = nn.Linear(768, 100)
    model.train()
    kept, feature = side_bytes(model, torch.randn(8, 3, 224, 224))
    loss_bytes, _ = kept_bytes(lambda: nn.functional.cross_entropy(head(feature), torch.arange(8)), head)
    print(options, kept, (kept + loss_bytes) / 1118395908)
    assert abs((kept + loss_bytes) / 1118395908 - target) <= .001


@pytest.mark.parametrize('name', ['SynQT'])
def test_videomae(name):
    torch.manual_seed(0)
    model = VideoMAE(
        img_size=32, patch_size=16, embed_dims=24, depth=2, num_heads=3, num_frames=4, petl=[METHODS[name]])
    model.eval()
    assert model(torch.randn(2, 3, 4, 32, 32)).shape == (2, 24)


def test_vqt_reads_the_mean_token_of_videomae():
    """Without a class token the first group is the base's own feature: the norm of the mean of its tokens."""
    torch.manual_seed(0)
    model = VideoMAE(img_size=32, patch_size=16, embed_dims=24, depth=2, num_heads=3, num_frames=4,
                     petl=[dict(type='VQT', num_tokens=2, normalize=False)])
    model.eval()
    x = torch.randn(2, 3, 4, 32, 32)
    with torch.no_grad():
        feature = model(x)
        with model.petl.disabled():
            plain = model(x)
    assert feature.shape == (2, 24 * 5) == (2, model.petl.vqt.out_dims)
    torch.testing.assert_close(feature[:, :24], plain)


@pytest.mark.parametrize('cfg', [dict(type='SynQT'), dict(type='LST', reduction=4), dict(type='VQT')],
                         ids=lambda cfg: cfg['type'])
@pytest.mark.parametrize('asked, words', [
    (dict(out_type='featmap'), "out_type='featmap'"),
    (dict(out_type='raw'), "out_type='raw'"),
    (dict(out_indices=(0, 2)), r'out_indices=\[0, 2\]'),
])
def test_other_forms_of_output_are_refused(cfg, asked, words):
    with pytest.raises(ValueError, match=f"{cfg['type']}: side methods give one vector per image, .*{words}"):
        BACKBONE['vit'].build([cfg], **asked)


def test_maps_of_clips_are_refused():
    with pytest.raises(ValueError, match='SynQT: side methods give one vector per clip, .*return_feat_map=True'):
        BACKBONE['videomae'].build([dict(type='SynQT')], return_feat_map=True)
