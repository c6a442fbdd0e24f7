# SPDX-License-Identifier: Apache-2.0
"""E2VPT against the reference on golden arrays: key/value prompts, masks, removal; its counts, initial values and
state."""

import copy

import pytest
import torch
from golden import e2vpt_names, golden_tensors
from mmpretrain.models import SwinTransformer, VisionTransformer

from mmpetl.backbones.attach import attach
from mmpetl.methods.e2vpt import E2VPT
from mmpetl.sites import BlockSpec


def specs(depth=12, dim=768, heads=12):
    return [BlockSpec(i, 0, dim, heads, 4 * dim, 1, (14, 14)) for i in range(depth)]


def swin_b_specs():
    dims = [128] * 2 + [256] * 2 + [512] * 18 + [1024] * 2
    return [BlockSpec(i, 0, d, d // 32, 4 * d, 0, (56, 56), (7, 7), (4, 4)) for i, d in enumerate(dims)]


def tiny_vit(depth=3, petl=None, out_type='cls_token', **kwargs):
    arch = dict(embed_dims=32, num_layers=depth, num_heads=4, feedforward_channels=64)
    torch.manual_seed(0)
    model = VisionTransformer(arch, img_size=16, patch_size=8, out_type=out_type, norm_cfg=dict(type='LN', eps=1e-6))
    model.init_weights()
    with torch.no_grad():
        for p in model.parameters():  # LayerNorms and biases away from one and zero
            p.add_(0.1 * torch.randn_like(p))
    attach(model, petl or [dict(type='E2VPT', num_tokens=10, num_kv_tokens=3, **kwargs)])
    model.eval()
    return model


def load_reference(model, sd):
    """Weights of the reference's ViT (separate q, k, v), its prompts and key/value prompts into our names."""
    model.load_state_dict(e2vpt_names(sd, len(model.layers)))


@pytest.mark.parametrize('shared', [True, False])
@pytest.mark.parametrize('behind', [0, 1])
def test_golden_key_value_prompts(shared, behind):
    """Output and gradient of sum(y^2). Whether prompts stand before or behind the tokens makes no difference in
    attention."""
    z = golden_tensors('e2vpt_attn')
    model = tiny_vit(1, out_type='raw', share_kv=shared)  # a last block hands on all its tokens only to who reads them
    attention, prompts = model.layers[0].attn, model.petl.e2vpt.kv_prompts['0']
    sd = {f'qkv.{k}': torch.cat([z[f'attn.{op}.{k}'] for op in ('query', 'key', 'value')]) for k in ('weight', 'bias')}
    attention.load_state_dict({**sd, **{f'proj.{k}': z[f'attn.out.{k}'] for k in ('weight', 'bias')}})
    prompts.data.copy_(z['prompt.shared'][None] if shared else torch.stack([z['prompt.K'], z['prompt.V']]))
    y = attention(z['x'])
    tag = f'share{int(shared)}_behind{behind}'
    torch.testing.assert_close(y, z[f'y.{tag}'], atol=1e-5, rtol=0)
    y.square().sum().backward()
    names = ['deep_QKV_embeddings'] if shared else ['deep_QKV_embeddings_K', 'deep_QKV_embeddings_V']
    torch.testing.assert_close(prompts.grad, torch.stack([z[f'grad.{tag}.{n}'] for n in names]), atol=1e-5, rtol=1e-5)


def test_golden_on_queries_and_values():
    """The published ablation: scores transposed, prompts in front of queries and values."""
    z = golden_tensors('e2vpt_attn')
    model = tiny_vit(1, out_type='raw', attention_prompts='qv')
    attention, prompts = model.layers[0].attn, model.petl.e2vpt.kv_prompts['0']
    sd = {f'qkv.{k}': torch.cat([z[f'attn.{op}.{k}'] for op in ('query', 'key', 'value')]) for k in ('weight', 'bias')}
    attention.load_state_dict({**sd, **{f'proj.{k}': z[f'attn.out.{k}'] for k in ('weight', 'bias')}})
    prompts.data.copy_(z['mode1.prompt'][None])
    torch.testing.assert_close(attention(z['x']), z['y.mode1'], atol=1e-6, rtol=0)


def test_golden_block():
    z = golden_tensors('e2vpt_attn')
    model = tiny_vit(1, out_type='raw')
    block = model.layers[0]
    sd = {
        f'attn.qkv.{k}': torch.cat([z[f'attn.{op}.{k}'] for op in ('query', 'key', 'value')])
        for k in ('weight', 'bias')
    }
    for theirs, ours in (('attn.out', 'attn.proj'), ('block.attention_norm', 'ln1'), ('block.ffn_norm', 'ln2'),
                         ('block.ffn.fc1', 'ffn.layers.0.0'), ('block.ffn.fc2', 'ffn.layers.1')):
        sd.update({f'{ours}.{k}': z[f'{theirs}.{k}'] for k in ('weight', 'bias')})
    block.load_state_dict(sd)
    model.petl.e2vpt.kv_prompts['0'].data.copy_(z['prompt.shared'][None])
    with torch.no_grad():  # the golden block has no input prompts
        block.tap._prompts, block.tap.num_prompts = (), 0
        torch.testing.assert_close(block(z['x']), z['y.block_share1_behind1'], atol=1e-5, rtol=0)


def reference_model(z, variant):
    model = tiny_vit(variant=variant)
    load_reference(model, {
        k.removeprefix('sd.enc.transformer.'): v
        for k, v in z.items() if k.startswith('sd.enc.transformer.')
    })
    return model, lambda x: torch.nn.functional.linear(
        model(x)[0], z['sd.head.last_layer.weight'], z['sd.head.last_layer.bias'])


@pytest.mark.parametrize('full', [False, True])
@pytest.mark.parametrize('pair', ['tok2_piece3', 'tok8_piece7'])
def test_golden_pruning(pair, full):
    """'released' sets pruned tokens to zero, 'paper' takes them out: the reference's two results, and they differ."""
    z = golden_tensors('e2vpt_importance')
    token, piece = (int(word[-1]) for word in pair.split('_'))
    keep = z['token_masks'][token].bool(), z['piece_masks'][piece].bool()
    for variant, kind in (('released', 'logits'), ('paper', 'logits_removed')):
        model, logits = reference_model(z, variant)
        model.petl.full_prompts = full
        model.petl.refresh()
        torch.testing.assert_close(logits(z['batch0.image']), z['logits.unmasked'], atol=1e-5, rtol=0)
        model.petl.e2vpt.prune(*keep)
        model.petl.refresh()
        torch.testing.assert_close(logits(z['batch0.image']), z[f'{kind}.{pair}'], atol=1e-5, rtol=0)
        left = 10 if variant == 'released' else int(keep[0].sum())
        assert [t.num_prompts for t in model.petl.taps] == [left] * 3
    assert (z[f'logits.{pair}'] - z[f'logits_removed.{pair}']).abs().max() > 0.01


def test_a_closed_gate_in_attention_is_removal():
    """log 0 on a prompt's key logits equals taking the token out, in both forms and on sited windows as well."""
    for model, x in ((tiny_vit(), torch.randn(2, 3, 16, 16)), tiny_swin()):
        method = model.petl.e2vpt
        keep = torch.tensor([True] * 6 + [False] * 4)
        gates = torch.where(keep, 0., float('-inf'))
        results = []
        for full, batch in ((False, 1), (True, 1), (True, len(x))):
            model.petl.full_prompts = full
            model.petl.refresh()
            for tap in model.petl.taps:
                if str(tap.index) in method.pruned_layers:
                    tap.prompt_gate = gates.expand(batch, -1)
            results.append(model(x)[0])
        model.petl.full_prompts = False
        method.prune(keep, torch.ones(10, method.segments))
        model.petl.refresh()
        for result in results:
            torch.testing.assert_close(result, model(x)[0], atol=1e-5, rtol=1e-5)


def tiny_swin(**kwargs):
    torch.manual_seed(0)
    model = SwinTransformer(
        dict(embed_dims=8, depths=[2, 2], num_heads=[1, 2]),
        img_size=32,
        patch_size=4,
        window_size=4,
        out_indices=(1, ))
    attach(model, [dict(type='E2VPT', num_tokens=10, num_kv_tokens=2, segments=4, **kwargs)])
    model.eval()
    return model, torch.randn(3, 3, 32, 32)


def test_swin_prunes_the_input_prompts_alone():
    model, x = tiny_swin()
    method = model.petl.e2vpt
    before = sum(p.numel() for p in method.parameters())
    method.prune(torch.arange(10) < 7, torch.ones(10, 4))
    model.petl.refresh()
    assert [t.num_prompts for t in model.petl.taps] == [7, 10, 10, 10]
    assert before - sum(p.numel() for p in method.parameters()) == 3 * 8
    together = model(x)[0]
    torch.testing.assert_close(together, torch.cat([model(x[i:i + 1])[0] for i in range(3)]), atol=1e-6, rtol=1e-5)


def test_masks_by_layout():
    """Channel c belongs to segment c mod S, or to segment c // (C / S)."""
    for layout, segment_of in (('interleaved', lambda c: c % 4), ('contiguous', lambda c: c // 8)):
        method = E2VPT(specs(2, 32, 4), num_tokens=2, segments=4, segment_layout=layout)
        keep = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]])
        method.prune(torch.tensor([1, 1]), keep)
        expected = torch.tensor([[keep[t, segment_of(c)] for c in range(32)] for t in range(2)]) * method.prompts['1']
        assert torch.equal(method.on_prompts(1)[0], expected)
        method.on_prompts(1).sum().backward()
        assert torch.equal(method.prompts['1'].grad != 0, expected != 0)


@pytest.mark.parametrize('tokens, kv', [(10, 5), (1, 1), (5, 10)])
def test_counts(tokens, kv):
    """9216 (P + K) on ViT-B, 12032 (P + K) on Swin-B; the released variant trains 17 P masks beside."""

    def count(blocks, **kwargs):
        return sum(p.numel() for p in E2VPT(blocks, num_tokens=tokens, num_kv_tokens=kv, **kwargs).parameters())

    assert count(specs()) == 9216 * (tokens + kv)
    assert count(swin_b_specs()) == 12032 * (tokens + kv)
    assert count(specs(), share_kv=False) == 9216 * (tokens + 2 * kv)
    assert count(specs(), deep=False) == 768 * tokens + 9216 * kv
    assert count(specs(), variant='released') == 9216 * (tokens + kv) + 17 * tokens


def test_counts_of_the_reference():
    """138,410 and 180,650 parameters with P = 10, K = 5 and masks; published runs on VTAB-1k with their heads and
    without masks."""
    for blocks, count in ((specs(), 138410), (swin_b_specs(), 180650)):
        assert sum(p.numel() for p in E2VPT(blocks, variant='released').parameters()) == count
    for tokens, kv, classes, count in ((5, 5, 100, 169060), (32, 5, 102, 419430)):
        assert sum(p.numel()
                   for p in E2VPT(specs(), num_tokens=tokens, num_kv_tokens=kv).parameters()) + 769 * classes == count


def test_count_after_pruning():
    """9216 (P - t) + 9216 K; the live share of segments, (S - g) / S of the first term, is what receives a gradient."""
    method = E2VPT(specs(), num_tokens=10)
    method.prune(torch.arange(10) >= 4, torch.arange(16).expand(10, 16) >= 12)
    assert sum(p.numel() for p in method.parameters()) == 9216 * 6 + 9216 * 5
    sum(method.on_prompts(i).sum() for i in range(12)).backward()
    assert sum((p.grad != 0).sum().item() for p in method.prompts.values()) == 9216 * 6 * 4 // 16


def test_initial_bounds():
    """Prompts 0.0625 (ViT-B), 0.1846 (Swin-B); key/value prompts 0.1369 (K = 5, d = 64), 0.1936 (d = 32), 0.0875
    ('xavier')."""
    for blocks, kwargs, prompt, kv in ((specs(), {}, 0.0625, 0.136931), (swin_b_specs(), {}, 0.184637, 0.193649),
                                       (specs(), dict(kv_init='xavier'), 0.0625, 0.087482)):
        method = E2VPT(blocks, num_tokens=50, **kwargs)
        for parameters, bound in ((method.prompts, prompt), (method.kv_prompts, kv)):
            top = torch.cat([p.abs().flatten() for p in parameters.values()]).max().item()
            assert 0.99 * bound < top <= bound + 1e-6
    spread = torch.cat([p.flatten() for p in E2VPT(specs(), kv_init='trunc_normal').kv_prompts.values()]).std().item()
    assert spread == pytest.approx(0.02, rel=0.03)


def pruned(**kwargs):
    method = E2VPT(specs(3, 32, 4), num_tokens=6, segments=4, **kwargs)
    method.prune(torch.tensor([1, 0, 1, 1, 0, 1]), torch.tensor([[1, 1, 0, 1]] * 6))
    return method


@pytest.mark.parametrize('variant', ['paper', 'released'])
def test_pruned_state_loads_into_a_fresh_method_and_back(variant):
    method, fresh = pruned(variant=variant), E2VPT(specs(3, 32, 4), num_tokens=6, segments=4, variant=variant)
    full = copy.deepcopy(fresh.state_dict())
    identity = [id(p) for p in fresh.parameters()]
    fresh.load_state_dict(method.state_dict())
    assert [id(p) for p in fresh.parameters()] == identity, 'optimizers hold the parameter objects'
    for i in range(3):
        assert fresh.num_prompts(i) == (4 if variant == 'paper' else 6)
        assert torch.equal(fresh.on_prompts(i), method.on_prompts(i))
    fresh.load_state_dict(full)
    assert fresh.num_prompts(0) == 6 and fresh.token_mask.sum() == 6
    assert torch.equal(fresh.on_prompts(2)[0], full['prompts.2'])


def test_state_of_another_length_is_refused():
    fresh = E2VPT(specs(3, 32, 4), num_tokens=7, segments=4)
    with pytest.raises(RuntimeError, match='size mismatch'):
        fresh.load_state_dict(pruned().state_dict())
    odd = pruned().state_dict()
    odd['token_mask'] = torch.ones(6)
    with pytest.raises(RuntimeError, match='size mismatch'):
        E2VPT(specs(3, 32, 4), num_tokens=6, segments=4).load_state_dict(odd)


def test_whole_backbone_takes_on_a_pruned_state():
    """Through the backbone's state dict, taps included: what a checkpoint of the last phase is loaded into."""
    model, other = tiny_vit(), tiny_vit()
    model.petl.e2vpt.prune(torch.arange(10) % 3 > 0, torch.arange(16).expand(10, 16) > 5)
    model.petl.refresh()
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 16, 16)
    for full in (False, True):
        for m in (model, other):
            m.petl.full_prompts = full
        model.petl.refresh()
        if full:
            other.petl.refresh()
        assert torch.equal(model(x)[0], other(x)[0])
        assert [t.num_prompts for t in other.petl.taps] == [6, 6, 6]


def test_pruning_twice_and_bringing_back():
    method = pruned()
    rows = method.prompts['1'].detach().clone()
    method.prune(torch.tensor([1, 0, 0, 1, 0, 1]), torch.ones(6, 4))
    assert torch.equal(method.prompts['1'], rows[[0, 2, 3]])
    with pytest.raises(ValueError, match='cannot be kept'):
        method.prune(torch.tensor([1, 1, 0, 1, 0, 1]), torch.ones(6, 4))


def test_reset_keeps_what_was_pruned():
    method = pruned()
    before = method.prompts['0'].detach().clone()
    method.init_weights()
    assert method.num_prompts(0) == 4 and not torch.equal(method.prompts['0'], before)
    assert method.segment_mask.sum() == 4 * 3


def test_trained_masks_of_the_released_variant():
    method = E2VPT(specs(3, 32, 4), num_tokens=6, segments=4, variant='released')
    method.on_prompts(1).sum().backward()
    assert method.token_mask.grad.abs().min() > 0 and method.segment_mask.grad.abs().min() > 0
    method.prune(torch.tensor([1, 0, 1, 1, 0, 1]), torch.ones(6, 4))
    assert not method.token_mask.requires_grad and method.on_prompts(1).shape == (1, 6, 32)
    assert (method.on_prompts(1)[0, 1] == 0).all()
    assert not [n for n, _ in E2VPT(specs(3, 32, 4)).named_parameters() if 'mask' in n]


def test_gates_per_sample():
    method = E2VPT(specs(3, 32, 4), num_tokens=6, segments=4)
    tokens, segments = torch.randn(5, 6), torch.randn(5, 6, 4)
    with method.gating(tokens, segments):
        gated = method.on_prompts(2)
    expected = method.prompts['2'] * (1 + segments).repeat(1, 1, 8) * (1 + tokens)[..., None]
    torch.testing.assert_close(gated, expected)
    assert method.on_prompts(2).shape == (1, 6, 32)


def test_dropout():
    method = E2VPT(specs(3, 32, 4), drop_rate=0.5, kv_drop_rate=0.5)
    assert (method.on_prompts(0) == 0).any() and (method.on_kv(0)[0] == 0).any()
    assert method.on_kv(0)[0] is not method.on_kv(0)[1]
    method.eval()
    assert torch.equal(method.on_prompts(0)[0], method.prompts['0']) and torch.equal(*method.on_kv(0))


@pytest.mark.parametrize('kwargs, message',
                         [(dict(num_tokens=0), 'E2VPT: num_tokens must be a whole number >= 1, got 0'),
                          (dict(num_kv_tokens=-2), 'E2VPT: num_kv_tokens'), (dict(segments=0), 'E2VPT: segments'),
                          (dict(segments=7), 'segments=7 must divide the width 768 of block 0'),
                          (dict(segment_layout='interleave'), "did you mean 'interleaved'"),
                          (dict(kv_init='kaimin'), 'kv_init'), (dict(variant='release'), "did you mean 'released'"),
                          (dict(pruned='input'), 'pruned')])
def test_refusals(kwargs, message):
    with pytest.raises(ValueError, match=message):
        E2VPT(specs(), **kwargs)


@pytest.mark.parametrize('tokens, segments', [(0, 4), (6, 0)])
def test_pruning_more_than_exists(tokens, segments):
    method = E2VPT(specs(3, 32, 4), num_tokens=6, segments=4)
    with pytest.raises(ValueError, match='cannot prune more than exists'):
        method.prune(torch.arange(6) < tokens, torch.arange(4).expand(6, 4) < segments)
    with pytest.raises(ValueError, match=r'token_keep must have the shape \(6,\), got \(5,\)'):
        method.prune(torch.ones(5), torch.ones(6, 4))
    assert method.num_prompts(0) == 6


def test_prompts_without_key_value_prompts():
    model = tiny_vit(petl=[dict(type='E2VPT', num_kv_tokens=0)])
    assert model.petl.taps[0].kv() is None and model(torch.randn(1, 3, 16, 16))[0].shape == (1, 32)


def test_built_with_what_pruning_left():
    """``kept`` gives the shapes and masks of pruning, the other values stay, and masks train no more."""
    kept = dict(tokens=[0, 2], segments={'0': [1, 3], '2': [0]})
    models = {}
    for variant in ('paper', 'released'):
        for given in (None, kept):
            torch.manual_seed(0)
            models[variant, bool(given)] = tiny_vit(petl=[
                dict(type='E2VPT', num_tokens=3, segments=4, variant=variant, kept=given)])
        whole, built = models[variant, False].petl.e2vpt, models[variant, True].petl.e2vpt
        tokens = torch.tensor([True, False, True])
        whole.prune(tokens, torch.tensor([[0, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]]).bool())
        for key, value in whole.state_dict().items():
            assert torch.equal(value, built.state_dict()[key]), key
        assert not built.token_mask.requires_grad and built.num_prompts(0) == (2 if variant == 'paper' else 3)
    for bad in (dict(tokens=[3], segments={'3': [0]}), dict(tokens=[0]), [0], dict(tokens=[0], segments={'0': [9]})):
        with pytest.raises(ValueError, match=r'E2VPT: kept( must be dict|=\[0\]: give a dict)'):
            tiny_vit(petl=[dict(type='E2VPT', num_tokens=3, segments=4, kept=bad)])
