# SPDX-License-Identifier: Apache-2.0
"""Options of published methods that the table of cases does not hold: each goes through files, half precision, copies,
and another input size, and is refused by name where it is not defined."""

import copy

import pytest
import torch
from cases import BACKBONE, features, perturb

import mmpetl
from mmpetl.methods.e2vpt import E2VPT
from mmpetl.methods.prefix import Prefix
from mmpetl.methods.vpt import VPT
from mmpetl.registry import METHODS
from mmpetl.sites import BlockSpec

VIT_B = [BlockSpec(i, 0, 768, 12, 3072, 1, (14, 14)) for i in range(12)]
DIMS = [128] * 2 + [256] * 2 + [512] * 18 + [1024] * 2
VIDEO_SWIN_B = [BlockSpec(i, 0, d, d // 32, 4 * d, window=(8, 7, 7)) for i, d in enumerate(DIMS)]
SWIN_B = [BlockSpec(i, 0, d, d // 32, 4 * d, 0, (56, 56), (7, 7), (4, 4)) for i, d in enumerate(DIMS)]
AVERAGE = dict(out_type='avg_featmap', final_norm=False)
#: name -> (method, backbones that carry it, options of the backbone)
OPTIONS = {
    'VPT shared': (dict(type='VPT', num_tokens=3, shared=True), ('vit', 'videomae'), {}),
    'VPT shared, projected': (dict(type='VPT', num_tokens=3, shared=True, project=4), ('vit', ), {}),
    'VPT normal': (dict(type='VPT', num_tokens=3, init='trunc_normal'), ('vit', 'swin'), {}),
    'VPT pooled alone': (dict(type='VPT', num_tokens=3, pool_prompts='only'), ('swin', ), {}),
    'VPT pooled alone, ViT': (dict(type='VPT', num_tokens=3, pool_prompts='only'), ('vit', ), AVERAGE),
    'E2VPT shared': (dict(type='E2VPT', num_tokens=3, num_kv_tokens=2, segments=4, shared=['prompts', 'kv']),
                     ('vit', 'videomae'), {}),
    'E2VPT shared kv': (dict(type='E2VPT', num_tokens=3, num_kv_tokens=2, segments=4, shared='kv', share_kv=False),
                        ('clip', ), {}),
    'E2VPT on q and v': (dict(type='E2VPT', num_tokens=3, num_kv_tokens=2, segments=4, attention_prompts='qv'),
                         ('vit', 'clip', 'videomae'), {}),
    'E2VPT on q and k': (dict(type='E2VPT', num_tokens=3, num_kv_tokens=2, segments=4, attention_prompts='qk'),
                         ('vit', 'videomae'), {}),
    'E2VPT on q and k, and k and v': (dict(type='E2VPT', num_tokens=3, num_kv_tokens=2, segments=4,
                                           attention_prompts='qkv'), ('vit', 'videomae'), {}),
    'E2VPT on q and k, shallow': (dict(type='E2VPT', num_tokens=3, num_kv_tokens=2, segments=4, deep=False,
                                       shared='kv', attention_prompts='qk'), ('vit', ), {}),
    'Prefix on q and k, direct': (dict(type='Prefix', ops='qk', num_tokens=3, mid_dims=None),
                                  ('vit', 'swin', 'video_swin'), {}),
    'Adapter learned': (dict(type='Adapter', mid_dims=4, scale=['learnable', 2, 'learnable']), ('vit', ), {}),
    'AdaptFormer learned': (dict(type='AdaptFormer', mid_dims=4, scale='learnable'), ('vit', ), {}),
}
ROWS = [(name, backbone) for name, (_, on, _) in OPTIONS.items() for backbone in on]
rows = pytest.mark.parametrize('name, on', ROWS, ids=[f'{n}-{b}' for n, b in ROWS])


def build(name, on, **options):
    petl, _, extra = OPTIONS[name]
    torch.manual_seed(0)
    model = BACKBONE[on].build([petl], **{**extra, **options})
    model.init_weights()
    return model


@rows
def test_through_files_half_precision_and_copies(name, on, tmp_path):
    model, x = build(name, on), BACKBONE[on].inputs()
    perturb(model.petl)
    model.eval()
    with torch.no_grad():
        expected = features(model(x))
        with mmpetl.disabled(model):
            assert (features(model(x)) - expected).abs().max() > 1e-4
    with pytest.raises(ValueError, match='cannot be merged'):
        mmpetl.merge(model)
    mmpetl.save_adapter(model, str(tmp_path / 'a.safetensors'))
    other = build(name, on)
    mmpetl.load_adapter(other, str(tmp_path / 'a.safetensors'))
    copied = copy.deepcopy(model)
    perturb(model.petl, 0.5, seed=3)
    for again in (other, copied):
        again.eval()
        with torch.no_grad():
            assert torch.equal(features(again(x)), expected)
    other.train()
    with torch.autocast('cpu', torch.bfloat16):
        half = features(other(x))
    half.float().square().sum().backward()
    assert (half.float() - expected).norm() <= 0.1 * expected.norm()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in other.petl.parameters())


@rows
def test_prompts_as_keys_equal_prompts_in_the_stream(name, on):
    model, x = build(name, on).double(), BACKBONE[on].inputs(dtype=torch.float64)
    perturb(model.petl, 0.1)
    model.eval()
    found = []
    for full in (False, True):
        model.petl.full_prompts = full
        model.petl.refresh()
        y = features(model(x))
        found.append([y, *torch.autograd.grad(y.square().sum(), list(model.petl.parameters()))])
    for short, textbook in zip(*found):
        torch.testing.assert_close(short, textbook, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize('name', [n for n, (_, on, extra) in OPTIONS.items() if 'vit' in on])
def test_another_input_size(name):
    model = build(name, 'vit')
    if 'q and k' in name:  # channels belong to positions
        with pytest.raises(ValueError, match=r'(ops|attention_prompts)=.qkv?. .*\b17\b.*\b31\b.* of the size'):
            model(torch.randn(2, 3, 48, 40))
        return
    assert features(model(torch.randn(2, 3, 48, 40))).shape == (2, 32)


def test_shared_prompts_are_one_tensor_in_every_block():
    model = build('E2VPT shared', 'vit')
    method = model.petl.e2vpt
    assert {n for n, _ in method.named_parameters()} == {'prompts.0', 'kv_prompts.0'}
    assert all(tap.num_prompts == 3 for tap in model.petl.taps)
    assert all(torch.equal(method.on_prompts(i), method.on_prompts(0)) for i in range(3))
    own = BACKBONE['vit'].build([dict(type='E2VPT', num_tokens=3, num_kv_tokens=2, segments=4)])
    own.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith('petl.')}, strict=False)
    with torch.no_grad():
        for kind in ('prompts', 'kv_prompts'):
            for value in getattr(own.petl.e2vpt, kind).values():
                value.copy_(getattr(method, kind)['0'])
    model.eval(), own.eval()
    x = BACKBONE['vit'].inputs()
    assert torch.equal(features(model(x)), features(own(x)))
    method.prune(torch.tensor([True, False, True]), torch.ones(3, 4).bool())
    model.petl.refresh()
    assert [tap.num_prompts for tap in model.petl.taps] == [2, 2, 2] and len(method.prompts['0']) == 2


@pytest.mark.parametrize('kind', ['Adapter', 'AdaptFormer'])
def test_a_learned_scale_is_a_scale(kind):
    """It starts at 1, and acts as the number that it has become."""
    learned, given = (BACKBONE['vit'].build([dict(type=kind, mid_dims=4, scale=scale)]) for scale in ('learnable', 3.))
    perturb(learned.petl)
    own = {k: v for k, v in learned.state_dict().items() if k.endswith('.scale')}
    assert len(own) == (6 if kind == 'Adapter' else 3) and all(0.7 < v < 1.3 for v in own.values())
    with torch.no_grad():
        for parameter in own.values():
            parameter.fill_(3)
    given.load_state_dict({k: v for k, v in learned.state_dict().items() if k not in own})
    learned.eval(), given.eval()
    x = BACKBONE['vit'].inputs()
    torch.testing.assert_close(features(learned(x)), features(given(x)))


@pytest.mark.parametrize('method, count', [
    (lambda: VPT(VIT_B, 50, shared=True), 768 * 50),
    (lambda: VPT(VIT_B, 50, shared=True, project=64), 64 * 50 + 768 * 64 + 768),
    (lambda: E2VPT(VIT_B, 10, 5, shared='prompts'), 768 * 10 + 9216 * 5),
    (lambda: E2VPT(VIT_B, 10, 5, shared=('prompts', 'kv')), 768 * 15),
    (lambda: E2VPT(SWIN_B, 10, 0, shared='kv'), 12032 * 10),
    (lambda: E2VPT(VIT_B, 10, {0: 5, 'default': 0}), 9216 * 10 + 768 * 5),
    (lambda: E2VPT(VIT_B, 10, 5, attention_prompts='qv'), 9216 * 15),
    (lambda: E2VPT(VIT_B, 10, 5, attention_prompts='qk'), 9216 * 10 + 144 * (197 + 10) * 5),
    (lambda: E2VPT(VIT_B, 10, 5, attention_prompts='qkv'), 9216 * 15 + 144 * (2 * (197 + 10) + 5) * 5),
    (lambda: E2VPT(VIT_B, 10, 5, attention_prompts='qkv', shared='kv'), 9216 * 10 + 768 * 5 + 12 * (2 * 207 + 5) * 5),
    (lambda: Prefix(VIDEO_SWIN_B, 16, 128, ops='qk', positions=196), 29_628_864),
    (lambda: Prefix(VIDEO_SWIN_B, 20, 64, ops='qk', positions=196), 15_772_480),
    (lambda: Prefix(SWIN_B, 16, None, ops='qk'), 2 * 376 * 49 * 16)])
def test_counts(method, count):
    assert sum(p.numel() for p in method().parameters()) == count


def test_prompts_of_a_normal_start():
    for made in (VPT(VIT_B, 50, init='trunc_normal'), E2VPT(VIT_B, 50, init='trunc_normal')):
        assert made.prompts['3'].std().item() == pytest.approx(0.02, rel=0.05)


def test_pooling_over_prompts_alone_is_their_mean():
    """The published "prompt_pool": the mean of the last block's prompts alone, then the norm behind the pooling."""
    model = build('VPT pooled alone, ViT', 'vit', arch=dict(
        embed_dims=32, num_layers=1, num_heads=4, feedforward_channels=64))
    model.eval()
    x = BACKBONE['vit'].inputs()
    with torch.no_grad(), model.petl.disabled():
        tokens = torch.cat([model.cls_token.expand(2, -1, -1), model.patch_embed(x)[0]], 1) + model.pos_embed
        prompts = model.petl.vpt.prompts['0'].expand(2, -1, -1)
        out = model.layers[0](torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], 1))
        expected = model.ln2(out[:, 1:4].mean(1))
    torch.testing.assert_close(features(model(x)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize('method, message', [
    (lambda: VPT(SWIN_B, shared=True), r'VPT: prompts shared by all blocks need one shape'),
    (lambda: VPT(VIT_B, {'0-5': 2, 'default': 3}, shared=True), 'need one shape'),
    (lambda: E2VPT(SWIN_B, shared='prompts'), 'E2VPT: prompts shared'),
    (lambda: E2VPT(SWIN_B, shared=['kv']), 'E2VPT: keys and values shared'),
    (lambda: E2VPT(VIT_B, shared=['keys']), "E2VPT: unknown shared 'keys'"),
    (lambda: METHODS.build(dict(type='Adapter', specs=VIT_B, scale='learned')), "Adapter: scale='learned': give a finite"),
    (lambda: METHODS.build(dict(type='FacT', specs=VIT_B, scale='learnable')), "FacT: scale='learnable'"),
    (lambda: VPT(VIT_B, init='uniforn'), "did you mean 'uniform'"),
    (lambda: E2VPT(VIT_B, attention_prompts='q'), "E2VPT: unknown attention_prompts 'q'"),
    (lambda: E2VPT(SWIN_B, attention_prompts='qv'), "attention_prompts='qv' is not defined over the windows"),
    (lambda: E2VPT(SWIN_B, attention_prompts='qk'), "attention_prompts='qk' is not defined over the windows"),
    (lambda: E2VPT(SWIN_B, attention_prompts='qkv'), "attention_prompts='qkv' is not defined over the windows"),
    (lambda: E2VPT(VIT_B, attention_prompts='qkv', share_kv=False), 'leave share_kv at True'),
    (lambda: E2VPT(VIT_B, attention_prompts='qv', share_kv=False), 'leave share_kv at True'),
    (lambda: E2VPT(VIT_B, attention_prompts='qk', stack=True), 'stack=True cannot be said beside it'),
    (lambda: Prefix(VIT_B, ops='qv'), "Prefix: ops must be 'kv' or 'qk', got 'qv'"),
    (lambda: Prefix(VIT_B, positions=197), "positions belong to ops='qk'"),
    (lambda: Prefix(VIT_B, ops='qk', positions=0), 'Prefix: positions must be a whole number >= 1, got 0'),
    (lambda: Prefix([BlockSpec(0, 0, 16, 2, 32)], ops='qk'), 'needs positions, the tokens of an attention: block 0'),
    (lambda: E2VPT(VIT_B, init='zeros'), "E2VPT: unknown init 'zeros'"),
    (lambda: VPT(VIT_B, pool_prompts='alone'), "pool_prompts must be True, False, 'only' or None"),
    (lambda: BACKBONE['vit'].build([dict(type='VPT', pool_prompts='only')]), "needs out_type='avg_featmap'")])
def test_refusals(method, message):
    with pytest.raises(ValueError, match=message) as error:
        method()
    assert '\n' not in str(error.value)


def explicit(block, x, tables, extra=None):
    """Attention of mmpretrain's block in its own words, with channels (heads, tokens, R) of queries and keys; tokens
    (1, N, C) with prompts behind the first, and further keys and values (heads, K, C / heads) before them."""
    q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in block.attn.qkv(block.ln1(x)).chunk(3, -1))
    if extra is not None:
        k, v = (torch.cat([e[None], t], 2) for e, t in zip(extra, (k, v)))
    logits = (torch.cat([q, tables[0][None]], -1) @ torch.cat([k, tables[1][None]], -1).transpose(-1, -2)) * 8**-0.5
    return block.attn.proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


def test_channels_of_queries_and_keys_are_a_bias_of_low_rank():
    """E2VPT's second ablation: K more channels for every token of the sequence, prompts among them."""
    model = build('E2VPT on q and k', 'vit')
    perturb(model.petl)
    model.eval()
    method, block = model.petl.e2vpt, model.layers[0]
    assert method.kv_prompts['0'].shape == (1, 4, 1 + 3 + 16, 2)
    x = torch.randn(1, 17, 32)
    whole = torch.cat([x[:, :1], method.prompts['0'][None], x[:, 1:]], 1)
    table = method.kv_prompts['0'][0]
    torch.testing.assert_close(block.attn(block.ln1(whole)), explicit(block, whole, (table, table)))
    # pruned tokens take their rows along
    method.prune(torch.tensor([True, False, True]), torch.ones(3, 4).bool())
    model.petl.refresh()
    rows = [n for n in range(20) if n != 2]
    whole = whole[:, rows]
    torch.testing.assert_close(block.attn(block.ln1(whole)), explicit(block, whole, (table[:, rows], table[:, rows])))


def test_channels_of_queries_and_of_all_keys():
    """E2VPT's third ablation: keys and values as in the paper, channels of the queries, and other channels of all keys."""
    model = build('E2VPT on q and k, and k and v', 'vit')
    perturb(model.petl)
    model.eval()
    method, block = model.petl.e2vpt, model.layers[0]
    kv, of_q, of_k = (getattr(method, n)['0'] for n in ('kv_prompts', 'query_channels', 'key_channels'))
    assert kv.shape == (1, 4, 2, 8) and of_q.shape == (4, 1 + 3 + 16, 2) and of_k.shape == (4, 2 + 1 + 3 + 16, 2)
    x = torch.randn(1, 17, 32)
    whole = torch.cat([x[:, :1], method.prompts['0'][None], x[:, 1:]], 1)
    torch.testing.assert_close(block.attn(block.ln1(whole)), explicit(block, whole, (of_q, of_k), (kv[0], kv[0])))
    method.prune(torch.tensor([True, False, True]), torch.ones(3, 4).bool())
    model.petl.refresh()
    rows = [n for n in range(20) if n != 2]
    whole, of_q, of_k = whole[:, rows], of_q[:, rows], of_k[:, [0, 1, *(n + 2 for n in rows)]]
    torch.testing.assert_close(block.attn(block.ln1(whole)), explicit(block, whole, (of_q, of_k), (kv[0], kv[0])))


@pytest.mark.parametrize('before', [False, True])
def test_channels_of_own_keys_stay_with_them(before):
    """Beside a Prefix, whose keys stand before or behind and have none."""
    petl = [OPTIONS['E2VPT on q and k, and k and v'][0], dict(type='Prefix', num_tokens=4, mid_dims=None)]
    model = BACKBONE['vit'].build(petl[::-1] if before else petl)
    perturb(model.petl)
    model.eval()
    method, block = model.petl.e2vpt, model.layers[0]
    kv, (own_k, own_v) = method.kv_prompts['0'][0], model.petl.prefix.blocks['0'].keys_values
    of_q, of_k = method.query_channels['0'], method.key_channels['0']
    whole = torch.randn(1, 20, 32)
    parts = [(own_k, own_v), (kv, kv)] if before else [(kv, kv), (own_k, own_v)]
    none = torch.zeros(4, 4, 2)
    of_k = torch.cat([none, of_k] if before else [of_k[:, :2], none, of_k[:, 2:]], 1)
    expected = explicit(block, whole, (of_q, of_k), [torch.cat(pair, 1) for pair in zip(*parts)])
    torch.testing.assert_close(block.attn(block.ln1(whole)), expected)


def test_prompts_of_others_have_no_channels():
    """Prefix on q and k beside VPT: in the stream or as keys alone, its prompts get the logits of the base."""
    petl = [dict(type='VPT', num_tokens=3), dict(type='Prefix', ops='qk', num_tokens=2, mid_dims=4)]
    model, x = BACKBONE['vit'].build(petl).double(), BACKBONE['vit'].inputs(dtype=torch.float64)
    model.eval()
    found = []
    for full in (False, True):
        model.petl.full_prompts = full
        model.petl.refresh()
        y = features(model(x))
        found.append([y, *torch.autograd.grad(y.square().sum(), list(model.petl.parameters()))])
    for short, textbook in zip(*found):
        torch.testing.assert_close(short, textbook, atol=1e-10, rtol=1e-9)


@pytest.mark.parametrize('name', ['E2VPT on q and k', 'E2VPT on q and k, and k and v', 'Prefix on q and k, direct'])
def test_channels_are_refused_in_mixed_batches(name):
    from mmpetl.adapters.mixed import mixed_taps
    model = build(name, 'vit')
    with pytest.raises(ValueError, match="adapter 'a': .* widens the queries and keys"):
        mixed_taps(model, {'a': (dict(model.petl.items()), (), None)}, ['a', 'a'])


def test_the_channels_of_a_table_start_as_published():
    """Uniform with the bound sqrt(6 / fan), fan the last two axes: tokens and prompts with them, and K."""
    method = E2VPT(VIT_B, 10, 5, attention_prompts='qk')
    bound = (6 / (207 * 5))**0.5
    assert all(0.99 * bound < t.abs().max() <= bound for t in method.kv_prompts.values())
    method = E2VPT(VIT_B, 10, 5, attention_prompts='qkv')
    for parameters, fan in ((method.kv_prompts, 5 * 64), (method.query_channels, 207 * 5), (method.key_channels, 212 * 5)):
        bound = (6 / fan)**0.5
        assert len(parameters) == 12 and all(0.98 * bound < t.abs().max() <= bound for t in parameters.values())
