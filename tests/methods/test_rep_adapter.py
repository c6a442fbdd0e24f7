# SPDX-License-Identifier: Apache-2.0
"""RepAdapter, ARC, RLRR and DiffFit against their formulas, in plain NumPy in double precision."""

import numpy as np
import pytest
import torch
from cases import BACKBONE, features, perturb
from torch.utils.flop_counter import FlopCounterMode

import mmpetl
from mmpetl.registry import METHODS
from mmpetl.sites import BlockSpec

SPECS = [BlockSpec(i, 0, 12, 2, 24) for i in range(2)]


def build(kind, specs=SPECS, **options):
    torch.manual_seed(0)
    return METHODS.build(dict(type=kind, specs=specs, **options)).double().eval()


def eval_mode(model):
    model.double().train(False)  # which returns nothing
    return model


def array(tensor):
    return tensor.detach().numpy()


def inputs(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('groups', [1, 2, 3])
def test_rep_adapter_is_its_formula(groups):
    method, z = build('RepAdapter', mid_dims=6, groups=groups, scale=[0.5, 2.]), inputs(2, 5, 12)
    assert torch.equal(method.on_norm(0, 'norm1', z), z), 'the start is exact'
    bound = (6 / 18)**0.5
    down = method.blocks['0']['attn'].down
    assert down.weight.abs().max() <= bound and down.weight.std() > bound / 3 and not down.bias.any()
    perturb(method, 0.5)
    for i, op, sub, scale in ((0, 'norm1', 'attn', 0.5), (1, 'norm2', 'ffn', 2.)):
        f = method.blocks[str(i)][sub]
        expected = np.zeros((2, 5, 12))
        for b, n in np.ndindex(2, 5):
            hidden = array(f.down.weight) @ array(z[b, n]) + array(f.down.bias)
            for c in range(12):
                group = c // (12 // groups)
                own = hidden[group * (6 // groups):(group + 1) * (6 // groups)]
                expected[b, n, c] = z[b, n, c] + scale * (array(f.up)[c] @ own + array(f.up_bias)[c])
        assert np.abs(array(method.on_norm(i, op, z)) - expected).max() <= 1e-12
    per_adapter = 12 * 6 + 6 + 12 * 6 // groups + 12
    assert sum(p.numel() for p in method.parameters()) == 4 * per_adapter


def test_rep_adapter_attention_only():
    method = build('RepAdapter', mid_dims=6, subs='attn')
    assert method.norm_ops(0) == ('norm1', ) and set(method.blocks['0']) == {'attn'}


@pytest.mark.parametrize('init', ['released', 'zero'])
def test_arc_is_its_formula(init):
    method, z = build('ARC', mid_dims=4, init=init), inputs(2, 5, 12)
    assert torch.equal(method.on_norm(0, 'norm1', z), z), 'attention starts exactly'
    assert torch.equal(method.on_norm(0, 'norm2', z), z) == (init == 'zero')
    assert method.blocks['0']['ffn']['scale'].abs().max() <= (6 / 5)**0.5
    assert sum(p.numel() for p in method.parameters()) == 2 * 12 * 4 + 2 * 2 * (4 + 12)
    perturb(method, 0.5)
    for i, op, sub in ((0, 'norm1', 'attn'), (1, 'norm2', 'ffn')):
        shared, own = array(method.shared[f'{sub}_12']), method.blocks[str(i)][sub]
        expected = array(z) + array(z) @ shared @ np.diag(array(own['scale'])) @ shared.T + array(own['bias'])
        assert np.abs(array(method.on_norm(i, op, z)) - expected).max() <= 1e-12


def test_arc_shares_by_width():
    specs = [BlockSpec(0, 0, 8, 2, 16), BlockSpec(1, 0, 8, 2, 16), BlockSpec(2, 1, 16, 2, 32)]
    method = build('ARC', specs, mid_dims=4)
    assert {k: tuple(p.shape) for k, p in method.shared.items()} == dict(
        attn_8=(8, 4), ffn_8=(8, 4), attn_16=(16, 4), ffn_16=(16, 4))


@pytest.mark.parametrize('kind', ['RepAdapter', 'ARC'])
def test_a_scale_behind_the_adapter_cannot_be_folded_before_it_can(kind):
    adapter = dict(type=kind, mid_dims=4)
    for order, folds in (([dict(type='SSF'), adapter], True), ([adapter, dict(type='SSF')], False)):
        torch.manual_seed(0)
        model = eval_mode(BACKBONE['vit'].build(order))
        perturb(model.petl, 0.05)
        x = BACKBONE['vit'].inputs(dtype=torch.float64)
        with torch.no_grad():
            expected = features(model(x))
            if folds:
                mmpetl.merge(model, verify=False)
            else:
                with pytest.raises(ValueError, match='ssf .SSF. cannot be merged into norm1'):
                    mmpetl.merge(model, verify=False)
            assert (features(model(x)) - expected).abs().max() <= 1e-12


def test_adapters_at_inputs_and_norms_fold_in_order():
    torch.manual_seed(0)
    petl = [dict(type='RepAdapter', mid_dims=4), dict(type='OFT', block_size=8, ops='q,fc1'), dict(type='ARC', mid_dims=4),
            dict(type='LoRA', rank=2, ops='q,k,fc1')]
    model = eval_mode(BACKBONE['vit'].build(petl))
    perturb(model.petl, 0.1)
    x = BACKBONE['vit'].inputs(dtype=torch.float64)
    with torch.no_grad():
        expected = features(model(x))
        mmpetl.merge(model)
        assert (features(model(x)) - expected).abs().max() <= 1e-12


def test_a_padded_map_is_not_folded():
    """12 cells are no multiple of a window of 5: padding is zero, whatever the bias of the adapter."""
    options = dict(arch=dict(embed_dims=16, depths=[1], num_heads=[2]), img_size=48, window_size=5, out_indices=(0, ))
    model = mmpetl.registry.MODELS.build(dict(type='mmpetl.SwinTransformer', petl=[dict(type='RepAdapter')], **options))
    with pytest.raises(ValueError, match='repadapter .RepAdapter. cannot be merged into q of block 0'):
        mmpetl.merge(model)


class Frozen:
    """Blocks that answer for the base's weights."""

    def __init__(self, spec, seed):
        generator = torch.Generator().manual_seed(seed)
        self.parts = {op: [torch.randn(*shape, generator=generator, dtype=torch.float64)
                           for shape in (spec.op_dims(op)[::-1], spec.op_dims(op)[1:])] for op in spec.ops}

    def op_parameters(self, op):
        return self.parts[op]

    @property
    def tap(self):
        return self

    def held(self, op):
        """No copies in half precision."""


def test_rlrr_is_its_formula():
    method = build('RLRR')
    for part in (method.blocks['0']['fc1'], method.blocks['1']['q']):
        assert not part['shift'].any()
        assert 1 < part['left'].abs().max() <= 6**0.5 and part['right'].abs().max() <= (6 / 12)**0.5
    assert method.blocks['0']['norm1'].scale.std() < 0.06 and 'final' in method.blocks['1']
    assert sum(p.numel() for p in method.parameters()) == 2 * (4 * 36 + 60 + 48 + 2 * 24) + 2 * 24
    method.bind([Frozen(spec, seed) for seed, spec in enumerate(SPECS)])
    perturb(method, 0.5)
    for i, op in ((0, 'q'), (0, 'fc1'), (1, 'fc2')):
        weight, bias = (array(t) for t in method.frozen(i, op))
        x, part = inputs(3, weight.shape[1]), method.blocks[str(i)][op]
        left, right = array(part['left']), array(part['right'])
        changed = np.array([[w + left[r] * w * right[c] for c, w in enumerate(row)] for r, row in enumerate(weight)])
        expected = array(x) @ changed.T + bias + array(part['shift'])
        got = method.on_linear(i, op, x, x @ torch.from_numpy(weight).T + torch.from_numpy(bias))
        assert np.abs(array(got) - expected).max() <= 1e-12
        folded = method.fold(i, op, *method.frozen(i, op))
        assert np.abs(array(folded[0]) - changed).max() <= 1e-12
    y, norm = inputs(3, 12), method.blocks['0']['norm2']
    assert np.abs(array(method.on_norm(0, 'norm2', y)) - (array(y) * array(norm.scale) + array(norm.shift))).max() <= 1e-12


def test_diff_fit_is_its_formula():
    """x + g_attn attention and x + g_ffn ffn, with biases and norms of the base."""
    model = eval_mode(BACKBONE['vit'].build([dict(type='DiffFit')], tune=['*bias', '*ln*']))
    trained = {n for n, p in model.named_parameters() if p.requires_grad and not n.startswith('petl.')}
    assert trained == {n for n, _ in model.named_parameters()
                       if (n.endswith('bias') or 'ln' in n) and not n.startswith('petl.')}
    assert sum(p.numel() for p in model.petl.parameters()) == 2 * 3
    perturb(model.petl, 0.5)
    plain = eval_mode(BACKBONE['vit'].build_upstream())
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith('petl.')})
    x = BACKBONE['vit'].inputs(dtype=torch.float64)
    for i, layer in enumerate(plain.layers):
        g = model.petl['difffit'].blocks[str(i)]

        def forward(x, layer=layer, g=g):
            x = x + g['proj'] * layer.attn(layer.ln1(x))
            return x + g['fc2'] * (layer.ffn(layer.ln2(x)) - layer.ln2(x))  # upstream's ffn adds what it gets

        layer.forward = forward
    with torch.no_grad():
        assert (features(model(x)) - features(plain(x))).abs().max() <= 1e-12


@pytest.mark.parametrize('kind, times', [('RLRR', (2, 2.5)), ('LoHa', (2, 2.5)), ('LoKr', (1.15, 1.25))])
def test_what_full_updates_cost(kind, times):
    """The cards' numbers, beside DiffFit, which adds no product; LoKr acts by sides and forms no full update."""
    options = dict(arch=dict(embed_dims=96, num_layers=8, num_heads=3, feedforward_channels=384), img_size=64)

    def products(**petl):
        model, x = BACKBONE['vit'].build([petl], **options), torch.randn(4, 3, 64, 64)
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            model(x)
        with FlopCounterMode(display=False) as step:
            features(model(x)).sum().backward()
        return np.array([forward.get_total_flops(), step.get_total_flops()])

    ops = {} if kind == 'RLRR' else dict(ops='q,k,v,proj,fc1,fc2')
    assert np.abs(products(type=kind, **ops) / products(type='DiffFit') - times).max() < 0.15


@pytest.mark.parametrize('cfg, words', [
    (dict(type='RepAdapter', groups=3), 'groups=3 must divide'),
    (dict(type='RepAdapter', subs='mlp'), 'unknown op'),
    (dict(type='ARC', init='one'), "init must be 'released' or 'zero'"),
    (dict(type='RLRR', ops='gate'), 'do not occur'),
    (dict(type='DiffFit', subs='mlp'), 'unknown op'),
])
def test_refusals(cfg, words):
    with pytest.raises(ValueError, match=words) as error:
        BACKBONE['vit'].build([cfg])
    assert '\n' not in str(error.value)
