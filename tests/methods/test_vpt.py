# SPDX-License-Identifier: Apache-2.0
"""VPT against the reference on golden arrays, its initialisation, counts, and the two forms of deep prompts."""


import pytest
import torch
from cases import BACKBONE, features, perturb
from golden import golden_tensors, vit_names
from mmpretrain.models import SwinTransformer, VisionTransformer

from mmpetl.backbones.attach import attach
from mmpetl.methods.vpt import VPT
from mmpetl.registry import METHODS
from mmpetl.sites import BlockSpec


def specs(depth=12, dim=768, heads=12, **kwargs):
    return [BlockSpec(i, 0, dim, heads, 4 * dim, 1, (14, 14), **kwargs) for i in range(depth)]


def swin_b_specs():
    dims = [128] * 2 + [256] * 2 + [512] * 18 + [1024] * 2
    return [BlockSpec(i, 0, d, d // 32, 4 * d, 0, (56, 56), (7, 7), (4, 4)) for i, d in enumerate(dims)]


def tiny_vit(petl, depth=3, **kwargs):
    arch = dict(embed_dims=32, num_layers=depth, num_heads=4, feedforward_channels=64)
    torch.manual_seed(0)
    model = VisionTransformer(arch, img_size=16, patch_size=8, norm_cfg=dict(type='LN', eps=1e-6), **kwargs)
    model.init_weights()
    with torch.no_grad():
        for p in model.parameters():  # LayerNorms and biases away from one and zero
            p.add_(0.1 * torch.randn_like(p))
    return attach(model, petl)


def load_reference(model, sd):
    """Weights of the reference's ViT (separate q, k, v) into mmpretrain's names."""
    out = vit_names(sd, len(model.layers))
    missing, unexpected = model.load_state_dict(out, strict=False)
    assert not unexpected and all(k.startswith('petl.') for k in missing), (missing, unexpected)


def set_prompts(method, first, deep=None):
    with torch.no_grad():
        for i, prompts in method.prompts.items():
            prompts.copy_(first[0] if i == '0' else deep[int(i) - 1])


@pytest.mark.parametrize('case', ['deep', 'shallow', 'deep_project8'])
@pytest.mark.parametrize('full', [False, True])
def test_golden(case, full):
    z = golden_tensors('e2vpt_vpt_sup', 'f')
    sd = {k.removeprefix('sd.transformer.'): v for k, v in z.items() if k.startswith('sd.')}
    project = 8 if case == 'deep_project8' else None
    model = tiny_vit([dict(type='VPT', num_tokens=3, deep=case != 'shallow', project=project)])
    load_reference(model, sd)
    if project:
        sd = {k.removeprefix('proj.transformer.'): v for k, v in z.items() if k.startswith('proj.')}
        model.petl.vpt.project.load_state_dict({k: sd[f'prompt_proj.{k}'] for k in ('weight', 'bias')})
    set_prompts(model.petl.vpt, sd['prompt_embeddings'], sd['deep_prompt_embeddings'])
    model.petl.full_prompts = full
    model.petl.refresh()
    model.eval()
    torch.testing.assert_close(model(z['x'])[0], z[f'{case}.cls'], atol=1e-5, rtol=0)


@pytest.mark.parametrize('out_type', ['cls_token', 'avg_featmap'])
def test_prefix_form_equals_full_form(out_type):
    """Deep prompts whose outputs are discarded act as keys and values only; outputs and gradients are those of the
    textbook form."""
    model = tiny_vit([dict(type='VPT', num_tokens=5)], out_type=out_type, final_norm=out_type == 'cls_token')
    x = torch.randn(2, 3, 16, 16)
    results = []
    for full in (False, True):
        model.petl.full_prompts = full
        model.petl.refresh()
        assert [t.prompts_read for t in model.petl.taps] == [full, full, full or out_type == 'avg_featmap']
        y = model(x)[0]
        results.append([y, *torch.autograd.grad(y.square().sum(), list(model.petl.parameters()))])
    for short, textbook in zip(*results):
        torch.testing.assert_close(short, textbook, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    'petl', [dict(type='VPT', num_tokens=3),
             dict(type='E2VPT', num_tokens=3, num_kv_tokens=2, segments=4)],
    ids=lambda petl: petl['type'])
@pytest.mark.parametrize('name', ['vit', 'clip', 'swin', 'videomae'])
def test_prefix_form_equals_full_form_on_every_backbone(name, petl):
    backbone = BACKBONE[name]
    torch.manual_seed(0)
    model = backbone.build([petl])
    perturb(model, 0.1)
    model.eval()
    results = []
    for full in (False, True):
        model.petl.full_prompts = full
        model.petl.refresh()
        assert model.petl.taps[0].prompts_read == full
        y = features(model(backbone.inputs()))
        results.append([y, *torch.autograd.grad(y.square().sum(), list(model.petl.parameters()))])
    for short, textbook in zip(*results):
        torch.testing.assert_close(short, textbook, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize('pool', [True, False])
def test_mean_pooling_with_and_without_prompts(pool):
    """MAE pooling against a textbook forward that carries the prompts."""
    model = tiny_vit([dict(type='VPT', num_tokens=5, pool_prompts=pool)],
                     depth=1,
                     out_type='avg_featmap',
                     final_norm=False)
    model.eval()
    x = torch.randn(2, 3, 16, 16)
    with model.petl.disabled():
        tokens = torch.cat([model.cls_token.expand(2, -1, -1), model.patch_embed(x)[0]], 1) + model.pos_embed
        prompts = model.petl.vpt.prompts['0'].expand(2, -1, -1)
        out = model.layers[0](torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], 1))
    expected = model.ln2(out[:, 1 if pool else 6:].mean(1))
    torch.testing.assert_close(model(x)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('deep', [True, False])
def test_swin_samples_do_not_see_their_batch(deep):
    """The published Swin mixes prompts of different samples when they differ, as they do below the first block of
    shallow prompts."""
    torch.manual_seed(0)
    model = SwinTransformer(
        dict(embed_dims=8, depths=[2, 2], num_heads=[1, 2]),
        img_size=32,
        patch_size=4,
        window_size=4,
        out_indices=(1, ))
    attach(model, [dict(type='VPT', num_tokens=3, deep=deep)]).eval()
    x = torch.randn(3, 3, 32, 32)
    together = model(x)[0]
    alone = torch.cat([model(x[i:i + 1])[0] for i in range(3)])
    assert together.shape == (3, 16, 4, 4)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def swin_block(z, shift):
    """The reference's block on mmpretrain's: width 16, two heads, an 8 x 8 map in windows of 4."""
    model = SwinTransformer(
        dict(embed_dims=16, depths=[2], num_heads=[2]), img_size=32, patch_size=4, window_size=4, out_indices=(0, ))
    attach(model, [])
    model.eval()
    block = model.stages[0].blocks[1 if shift else 0]
    names = {'attn.': 'attn.w_msa.', 'mlp.fc1.': 'ffn.layers.0.0.', 'mlp.fc2.': 'ffn.layers.1.'}
    sd = {k.removeprefix('block.sd.'): v for k, v in z.items() if k.startswith('block.sd.')}
    for theirs, ours in names.items():
        sd = {ours + k.removeprefix(theirs) if k.startswith(theirs) else k: v for k, v in sd.items()}
    missing, unexpected = block.load_state_dict(sd, strict=False)
    assert missing == ['attn.w_msa.relative_position_index'] and not unexpected
    return block


@pytest.mark.parametrize('shift', [0, 2])
def test_golden_swin_block(shift):
    """The reference averages prompts over windows of different samples, so only its result for each sample alone is
    right.

    Where prompts are equal over the batch, as deep ones are, the grid tokens come out right.
    """
    z = golden_tensors('e2vpt_swin_vpt_block', 'f')
    block = swin_block(z, shift)
    torch.testing.assert_close(block(z['block.x'], (8, 8))[:, 3:], z[f'block.y_shift{shift}'][:, 3:], atol=1e-5, rtol=0)
    y = block(z['block.xleak'], (8, 8))
    torch.testing.assert_close(y, z[f'block.yleak_alone_shift{shift}'], atol=1e-5, rtol=0)
    assert (y - z[f'block.yleak_shift{shift}']).abs().max() > 1e-2


def test_golden_swin_merging():
    """A prompt is merged with three copies of itself; the reference stores positions before channels, mmpretrain
    channels first."""
    z = golden_tensors('e2vpt_swin_vpt_block', 'f')
    model = SwinTransformer(
        dict(embed_dims=16, depths=[1, 1], num_heads=[2, 2]),
        img_size=32,
        patch_size=4,
        window_size=4,
        out_indices=(1, ))
    attach(model, [])
    merging = model.stages[0].downsample
    order = [0, 2, 1, 3]
    weight, norm = z['merge.sd.reduction.weight'], {k: z[f'merge.sd.norm.{k}'] for k in ('weight', 'bias')}
    state = {'reduction.weight': weight.view(32, 4, 16)[:, order].transpose(1, 2).reshape(32, 64)}
    state.update({f'norm.{k}': v.view(4, 16)[order].T.reshape(64) for k, v in norm.items()})
    merging.load_state_dict(state)
    y, size = merging(z['block.x'], (8, 8))
    assert size == (4, 4)
    torch.testing.assert_close(y, z['merge.y'], atol=1e-5, rtol=0)


def test_initial_bounds():
    """0.0625 on ViT-B/16 and 0.1846 on Swin-B for every stage; the projected width counts where there is a
    projection."""
    for blocks, bound in ((specs(), 0.0625), (swin_b_specs(), 0.184637), (specs(patch=(2, 16, 16)), 0.0625)):
        method = VPT(blocks, num_tokens=50)
        assert method.bound == pytest.approx(bound, abs=1e-5)
        for prompts in method.prompts.values():
            assert 0.97 * bound < prompts.abs().max() <= bound
    method = VPT(specs(), num_tokens=50, project=64)
    assert method.prompts['3'].abs().max() <= (6 / (768 + 64))**0.5
    assert method.project.weight.std().item() == pytest.approx((2 / 768)**0.5, rel=0.02)


@pytest.mark.parametrize('kwargs, count', [(dict(num_tokens=7), 9216 * 7), (dict(num_tokens=7, deep=False), 768 * 7),
                                           (dict(num_tokens=7, layers='0-4'), 768 * 7 * 5),
                                           (dict(num_tokens=7, project=64), 12 * 64 * 7 + 768 * 64 + 768),
                                           (dict(num_tokens={
                                               '0-5': 2,
                                               'default': 4
                                           }), 768 * 36)])
def test_counts_vit_b(kwargs, count):
    assert sum(p.numel() for p in VPT(specs(), **kwargs).parameters()) == count


def test_counts_swin_b():
    assert sum(p.numel() for p in VPT(swin_b_specs(), num_tokens=10).parameters()) == 12032 * 10
    assert sum(p.numel() for p in VPT(swin_b_specs(), num_tokens=10, deep=False).parameters()) == 1280


def test_published_counts():
    """Numbers printed by the reference on VTAB-1k, heads included."""
    for tokens, classes, count in ((5, 397, 351373), (100, 6, 926214), (100, 10, 929290)):
        assert sum(p.numel() for p in VPT(specs(), num_tokens=tokens).parameters()) + 769 * classes == count


def test_dropout_is_shared_by_the_batch_and_off_in_evaluation():
    method = VPT(specs(2, 32, 4), num_tokens=4, drop_rate=0.5)
    drawn = method.on_prompts(0)
    assert drawn.shape == (1, 4, 32) and (drawn == 0).any() and not torch.equal(drawn, method.on_prompts(0))
    method.eval()
    assert torch.equal(method.on_prompts(0)[0], method.prompts['0'])


@pytest.mark.parametrize('kwargs, message', [
    (dict(num_tokens=0), 'VPT: num_tokens must be a whole number >= 1, got 0'), (dict(num_tokens=-1), 'num_tokens'),
    (dict(num_tokens=2.5), 'num_tokens'), (dict(project=0), 'VPT: project'), (dict(layers='0-12'), 'names block 12')])
def test_refusals(kwargs, message):
    with pytest.raises(ValueError, match=message):
        VPT(specs(), **kwargs)


def test_projection_is_refused_on_stages():
    with pytest.raises(ValueError, match='blocks of one width'):
        VPT(swin_b_specs(), project=8)


def test_two_prompt_methods_need_stack():
    with pytest.raises(ValueError, match='stack=True'):
        tiny_vit([dict(type='VPT'), dict(type='VPT', name='more')])
    model = tiny_vit([dict(type='VPT', num_tokens=2, stack=True), dict(type='E2VPT', num_tokens=3, stack=True)])
    assert [t.num_prompts for t in model.petl.taps] == [5, 5, 5]


@pytest.mark.parametrize('petl', [
    dict(type='VPT', num_tokens=4, drop_rate=0.5, drop_per_sample=True),
    dict(type='VPT', num_tokens=4, deep=False, drop_rate=0.5, drop_per_sample=True),
    dict(type='E2VPT', num_tokens=4, num_kv_tokens=2, segments=4, drop_rate=0.5, drop_per_sample=True),
], ids=['deep', 'shallow', 'E2VPT'])
def test_every_sample_has_its_own_mask_as_published(petl):
    """Two copies of one picture differ while training, and are equal with one mask per batch and in evaluation."""
    model, shared = tiny_vit([petl]), tiny_vit([{**petl, 'drop_per_sample': False}])
    x = torch.randn(1, 3, 16, 16).expand(2, -1, -1, -1)
    for twins, differ in ((model, True), (shared, False)):
        twins.train()
        for _ in range(2):
            first, second = twins(x)[0]
            assert torch.allclose(first, second, atol=1e-6) is not differ
    model.eval(), shared.eval()
    shared.load_state_dict(model.state_dict())
    assert torch.equal(model(x)[0], shared(x)[0])
    (tap, *_), (method, *_) = model.petl.taps, model.petl.values()
    method.train()
    ratios = torch.cat([tap.prompts(500) / method.on_prompts(0)]).flatten(1)
    assert set(ratios.unique().tolist()) == {0., 2.} and abs(ratios.mean() - 1) < 0.02
    assert len(ratios.unique(dim=0)) == 500


def test_windows_share_one_mask():
    for name in ('VPT', 'E2VPT'):
        with pytest.raises(ValueError, match=f'{name}: drop_per_sample needs global attention'):
            METHODS.get(name)(swin_b_specs(), num_tokens=4, drop_per_sample=True)
