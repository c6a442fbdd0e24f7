# SPDX-License-Identifier: Apache-2.0
"""Classes that share the blocks of others: every method that is defined there in one short test, files, peft, plans."""

import copy
import math
import re
import warnings
from dataclasses import replace

import pytest
import torch
from cases import FOREIGN, METHODS, ROW, features, perturb

import mmpetl
from mmpetl.costs.memory import on_meta, saved_bytes
from mmpetl.costs.plan import macs

warnings.filterwarnings('ignore')
SISTERS = [b for b in FOREIGN if b.graphs]
#: Further classes of the families above; only the tests of this file run on them.
SISTERS.append(replace(ROW['timm_swin'], name='timm_swin_v2', without=('RepAdapter', 'ARC', 'DiffFit'),
                       kwargs=dict(ROW['timm_swin'].kwargs, model_name='swinv2_tiny_window8_256'),
                       unmerged=('SSF', 'LoRA + SSF', 'RLRR', 'GLoRA')))
SISTERS.append(replace(SISTERS[-1], name='hf_swin_v2', type='mmpetl.HF', upstream=ROW['hf_swin'].upstream,
                       kwargs=dict(config=dict(ROW['hf_swin'].kwargs['config'], model_type='swinv2'))))
MM = [b for b in SISTERS if b.name in ('deit3', 'beit', 'eva02', 'swin_v2')]


def _plain(backbone, **options):
    torch.manual_seed(0)
    model = backbone.build_upstream(**options)
    perturb(model, 0.1)
    model.eval()
    return model


def _run(model, x):
    model.eval()
    return features(model(x))


@pytest.mark.parametrize('backbone', [*SISTERS, *(b for b in FOREIGN if not b.only)], ids=lambda b: b.name)
def test_every_method(backbone):
    """Attached to the object: it acts, trains alone, is off when disabled, and merges where it can."""
    plain, x = _plain(backbone), backbone.inputs()
    state = plain.state_dict()
    with torch.no_grad():
        expected = _run(plain, x)
    ran = set()
    for case in (c for c in METHODS if backbone.allows(c) and backbone.name != 'clip_frames'):
        petl = case.petl
        if case.name == 'Prefix-qk' and backbone.name == 'hf_timesformer':
            petl = [dict(petl[0], positions=1 + 4 * 4)]  # of one frame and the class token
        model = backbone.build(petl)
        model.load_state_dict(state, strict=False)
        perturb(model.petl, 0.02)
        adapted = _run(model, x)
        adapted.square().mean().backward()
        trained = {n for n, p in model.named_parameters() if p.grad is not None}
        assert trained and all(n.startswith('petl.') for n in trained), case.name
        with torch.no_grad():
            with mmpetl.disabled(model):
                assert (_run(model, x) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max()), case.name
            assert adapted.shape != expected.shape or (adapted - expected).abs().max() > 1e-5, case.name
        if not case.folds or case.name in backbone.unmerged:
            with pytest.raises(ValueError, match='cannot be merged|no bias that could hold'):
                mmpetl.merge(model)
        else:
            mmpetl.merge(model, verify=True)
            fresh = _plain(backbone)
            fresh.load_state_dict(model.state_dict(), strict=True)
            with torch.no_grad():
                assert (_run(fresh, x) - adapted).abs().max() <= 2e-5 * max(1, expected.abs().max()), case.name
        ran.add(case.name)
    assert len(ran) >= 20


def _published(plain, **extra):
    """A file as mmpretrain publishes it: the whole model's state, the backbone under its name."""
    return {f'backbone.{k}': v for k, v in plain.state_dict().items()} | {'head.fc.weight': torch.zeros(2, 32), **extra}


@pytest.mark.parametrize('backbone', MM, ids=lambda b: b.name)
def test_published_files(backbone, tmp_path):
    """Whole-model files are read by init_cfg, without their tables too, and at another picture size."""
    plain, x = _plain(backbone), backbone.inputs()
    state = {k: v for k, v in _published(plain).items() if not re.search('relative_|freqs', k) or 'bias_table' in k}
    torch.save(dict(state_dict=state), tmp_path / 'whole.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'whole.pth'))
    model = backbone.build(init_cfg=pretrained) if backbone.name != 'eva02' else backbone.build()
    model.init_cfg = pretrained
    model.init_weights()
    with torch.no_grad():
        assert (_run(model, x) - _run(plain, x)).abs().max() <= 2e-5
    larger = backbone.build(img_size=64) if backbone.name != 'swin_v2' else backbone.build(window_size=8)
    larger.load_state_dict(state, strict=False)
    with torch.no_grad():
        assert torch.isfinite(_run(larger, torch.randn(1, 3, 64, 64))).all()
    wrong = {k: v for k, v in state.items() if 'layers.1.' not in k and 'stages.1.' not in k}
    with pytest.raises(ValueError, match='tensors of .* do not fit'):
        backbone.build().load_state_dict(wrong)


def test_shared_biases_of_beit_go_to_every_block():
    shared = _plain(ROW['beit'], use_rel_pos_bias=False, use_shared_rel_pos_bias=True)
    model, x = ROW['beit'].build(), ROW['beit'].inputs()
    model.load_state_dict(_published(shared), strict=False)
    attached = mmpetl.attach(copy.deepcopy(shared))
    with torch.no_grad():
        expected = _run(shared, x)
        assert (_run(model, x) - expected).abs().max() <= 1e-5 and (_run(attached, x) - expected).abs().max() <= 1e-5


def test_a_norm_that_files_lack_begins_at_identity():
    plain = _plain(ROW['beit'])
    state = {k: v for k, v in _published(plain).items() if 'ln2' not in k or 'layers' in k}
    model = ROW['beit'].build()
    torch.nn.init.zeros_(model.ln2.weight)
    model.load_state_dict(state, strict=False)
    assert (model.ln2.weight == 1).all() and (model.ln2.bias == 0).all()


def test_layer_scale_of_deit3():
    """With LayerScale, and with the norm that upstream reads twice: nothing is merged into it."""
    plain = _plain(ROW['deit3'], use_layer_scale=True)
    model, x = mmpetl.attach(copy.deepcopy(plain), [dict(type='LoRA', rank=2, ops='q,k,v,proj,fc1,fc2')]), torch.randn(2, 3, 32, 32)
    perturb(model.petl)
    with torch.no_grad():
        expected = _run(model, x)
        mmpetl.merge(model, verify=True)
        assert (_run(model, x) - expected).abs().max() <= 1e-5
    with pytest.raises(ValueError, match='norm1 and norm2 of block 0 are one layer'):
        mmpetl.merge(mmpetl.attach(copy.deepcopy(plain), [dict(type='SSF')]))
    only = mmpetl.attach(plain, [dict(type='SSF', ops='q,k,v,proj,fc1,fc2')])
    mmpetl.merge(only, verify=True)
    with pytest.warns(UserWarning, match='never reads ln2'):
        mmpetl.attach(_plain(ROW['deit3']))


def test_timm_swins_pad_and_roll_as_timm_does():
    """Maps that windows do not divide, also at sizes that are known at run time only."""
    for name in ('swin_tiny_patch4_window7_224', 'swinv2_tiny_window8_256'):
        backbone = replace(ROW['timm_swin'], kwargs=dict(ROW['timm_swin'].kwargs, model_name=name, img_size=44))
        for options, size in ((dict(), 44), (dict(dynamic_img_size=True), 60)):
            plain = _plain(backbone, **options)
            model, x = mmpetl.attach(copy.deepcopy(plain), [dict(type='LoRA', rank=2)]), torch.randn(2, 3, size, size)
            with torch.no_grad():
                assert (_run(model, x) - _run(plain, x)).abs().max() <= 1e-5


@pytest.mark.parametrize('kind', ['swin', 'swinv2'])
def test_swins_of_transformers(kind):
    """Maps that windows do not divide, hidden pictures' parts, states of all stages; what is undefined is one line."""
    backbone = ROW['hf_swin']
    backbone = replace(backbone, kwargs=dict(config=dict(backbone.kwargs['config'], model_type=kind, encoder_stride=8)))
    plain = _plain(backbone)
    model = mmpetl.attach(copy.deepcopy(plain), [dict(type='LoRA', rank=2)]).eval()
    for size in ((44, 60), (32, 32)):  # in this order: after a map of one window, upstream's own SwinModel never shifts again
        x = torch.randn(2, 3, *size)
        with torch.no_grad():
            theirs, ours = (m(x, output_hidden_states=True) for m in (plain, model))
        assert all((a - b).abs().max() <= (0 if kind == 'swin' else 2e-6) * a.abs().max()
                   for a, b in zip(theirs.reshaped_hidden_states, ours.reshaped_hidden_states, strict=True))
        assert (theirs.pooler_output - ours.pooler_output).abs().max() <= 2e-6
    assert _run(backbone.build(out_type='featmap'), torch.randn(2, 3, 44, 60)).shape == (2, 32, 6, 8)
    if kind == 'swinv2':
        with pytest.raises(ValueError, match='output_attentions is not supported'):
            model(x, output_attentions=True)
    else:
        with pytest.raises(ValueError, match=r'the feature map \(2, 2\) is smaller than the window \(4\)'):
            model(torch.randn(1, 3, 16, 16))
    import transformers
    masked = getattr(transformers, type(plain).__name__.replace('Model', 'ForMaskedImageModeling'))(plain.config)
    hidden, x = torch.arange(64).expand(2, -1) % 3 == 0, torch.randn(2, 3, 32, 32)
    masked.eval(), perturb(masked, 0.1)
    ours = mmpetl.attach(copy.deepcopy(masked), [dict(type='LoRA', rank=2)]).eval()
    with torch.no_grad():
        a, b = (m(x, bool_masked_pos=hidden).reconstruction for m in (masked, ours))
    assert (a - b).abs().max() <= 2e-6 * a.abs().max()


_HIERA = dict(img_size=(64, 96), stages=(1, 1, 2, 1), q_pool=3, mask_unit_size=(8, 8), mask_unit_attn=(True, True, False, False))


@pytest.mark.parametrize('options', [_HIERA, dict(_HIERA, use_expand_proj=False, init_values=0.5, abs_win_pos_embed=True)])
def test_hiera_of_four_stages(options):
    """Methods see tokens row by row; states of all stages are upstream's."""
    backbone = replace(ROW['timm_hiera'], kwargs=dict(ROW['timm_hiera'].kwargs, **options))
    plain, x, seen = _plain(backbone), torch.randn(2, 3, 64, 96), {}

    class Watch(mmpetl.sites.Method):
        def on_branch(self, i, sub, residual, x, y):
            seen[i, sub] = (residual + y).unflatten(1, self.grid(i))
            return y

    model = mmpetl.attach(copy.deepcopy(plain)).eval()
    watched = mmpetl.attach(copy.deepcopy(plain), [Watch([b.spec for b in model.petl.blocks])]).eval()
    with torch.no_grad():
        end, theirs = plain.forward_features(x, return_intermediates=True)
        same, ours = watched.forward_features(x, return_intermediates=True)
        assert (_run(model, x) - _run(plain, x)).abs().max() <= 1e-5
    assert (end - same).abs().max() <= 1e-5 * end.abs().max()
    for a, b, block in zip(theirs, ours, plain.stage_ends, strict=True):
        assert (a - b).abs().max() <= 1e-5 * a.abs().max()
        assert (a - seen[block, 'ffn']).abs().max() <= 1e-5 * a.abs().max()
        assert seen[block, 'attn'].shape == a.shape
    assert backbone.build(out_type='featmap').eval()(x)[0].shape == (2, 128, 2, 3)
    with pytest.raises(ValueError, match='masks are not supported'):
        model(x, mask=torch.ones(2, 6, dtype=torch.bool))


def test_prompts_of_hiera_stand_in_every_mask_unit():
    """By hand: keys and values of prompts in front of those of a unit, queries pooled by 2 x 2."""
    backbone = replace(ROW['timm_hiera'], kwargs=dict(ROW['timm_hiera'].kwargs, stages=(1, 1, 1), q_pool=2,
                                                           mask_unit_attn=(True, True, True), mask_unit_size=(4, 4)))
    model = backbone.build([dict(type='VPT', num_tokens=3)]).double().eval()
    perturb(model, 0.2)
    block, x = model.blocks[1], torch.randn(2, 64, 16, dtype=torch.float64)
    with torch.no_grad():
        got = block.attention(block.norm1(x), block.norm1(block.tap.prompts()))
        h, attn, out = block.norm1(x).view(2, 8, 8, 16), block.attn, torch.zeros(2, 4, 4, 32, dtype=torch.float64)
        prompts = block.norm1(block.tap.prompts())[0]
        for b, r, c in ((b, r, c) for b in range(2) for r in (0, 4) for c in (0, 4)):
            rows = torch.cat([prompts, h[b, r:r + 4, c:c + 4].flatten(0, 1)])
            q, k, v = (t.unflatten(-1, (attn.heads, -1)) for t in attn.qkv(rows).chunk(3, -1))
            q = q[3:].unflatten(0, (2, 2, 2, 2)).amax((1, 3)).flatten(0, 1)
            weights = torch.einsum('qhd,khd->hqk', q, k).mul(attn.scale).softmax(-1)
            y = attn.proj(torch.einsum('hqk,khd->qhd', weights, v).flatten(1))
            out[b, r // 2:r // 2 + 2, c // 2:c // 2 + 2] = y.view(2, 2, 32)
    assert (got - out.flatten(1, 2)).abs().max() <= 1e-12


@pytest.mark.parametrize('name', ['mvit', 'video_mvit'])
def test_what_mvit_does_not_define(name, tmp_path):
    """Prompts and further channels would pass kernels over the grid; one line each. Published tables of another size fit."""
    backbone = ROW[name]
    for petl, why in ((dict(type='VPT', num_tokens=2), "VPT needs the point 'prompts'"),
                      (dict(type='E2VPT', num_tokens=2), "E2VPT needs the point 'prompts'"),
                      (dict(type='Prefix', ops='qk', num_tokens=2), "Prefix: block 0 pools queries and keys.*ops='kv' is")):
        with pytest.raises(ValueError, match=why):
            backbone.build([petl])
    plain = _plain(backbone)
    torch.save(dict(state_dict=_published(plain)), tmp_path / 'whole.pth')
    model = backbone.build(init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'whole.pth')))
    model.init_weights()
    with torch.no_grad():
        assert (_run(model, backbone.inputs()) - _run(plain, backbone.inputs())).abs().max() <= 2e-5
    size = 'img_size' if name == 'mvit' else 'spatial_size'
    larger, x = backbone.build(**{size: 64}), torch.randn(1, *backbone.shape[:-2], 64, 64)
    larger.load_state_dict(_published(plain), strict=False)
    with torch.no_grad():  # upstream resizes the same tables at run time
        assert (_run(larger, x) - _run(plain, x)).abs().max() <= 1e-5


def test_what_uniformer_adds_to_its_blocks(tmp_path):
    """Local attention over time and the queries of all frames stay or train by tune; CLIP's own weights come in alone."""
    backbone = ROW['uniformer_v2']
    plain, x = _plain(backbone), backbone.inputs()
    model = backbone.build([dict(type='LoRA', rank=2)], tune=['*lmhra*', '*dec*'])
    trained = {n.split('.')[1] + '.' + n.split('.')[3] for n, p in model.named_parameters() if p.requires_grad and not n.startswith('petl.')}
    assert {'resblocks.lmhra1', 'resblocks.lmhra2', 'dec.attn'} <= trained and not any('ln_1' in n for n in trained - {'dec.ln_1'})
    image = {n: t for n, t in plain.state_dict().items() if not any(part in n for part in ('lmhra', 'dec', 'dpe', 'temporal', 'transformer.norm', 'balance'))}
    model.load_state_dict(image, strict=False)
    assert all(torch.equal(model.state_dict()[n], t) for n, t in image.items())
    torch.save(dict(state_dict=_published(plain)), tmp_path / 'whole.pth')
    whole = backbone.build(pretrained=str(tmp_path / 'whole.pth'))
    whole.init_weights()
    with torch.no_grad():
        assert (_run(whole, x) - _run(plain, x)).abs().max() == 0
    for kind in ('STAdapter', 'AIM'):
        with pytest.raises(ValueError, match=kind):
            backbone.build([dict(type=kind)])
    with pytest.raises(ValueError, match='prompts cannot travel in the stream'):
        backbone.build([dict(type='VPT', num_tokens=2, deep=False)])


def test_a_prefix_of_mvit_joins_behind_pooling():
    """By hand, in one block: finished keys and values in front of the pooled ones, without a place."""
    model = ROW['mvit'].build([dict(type='Prefix', num_tokens=3, mid_dims=4)]).double()
    model.eval(), perturb(model, 0.2)
    block, x = model.blocks[1], torch.randn(2, 64, 16, dtype=torch.float64)
    attn, h, (keys, values) = block.attn, block.norm1(x), block.tap.kv()
    with torch.no_grad():
        def pool(t, op):
            maps = t.unflatten(1, (8, 8)).unflatten(-1, (attn.num_heads, -1)).permute(0, 3, 4, 1, 2)
            maps = torch.stack([getattr(attn, f'pool_{op}')(m) for m in maps.unbind(1)], 1)
            return getattr(attn, f'norm_{op}')(maps.flatten(-2).transpose(-1, -2)), maps.shape[-2:]

        (q, q_grid), (k, k_grid), (v, _) = (pool(t, op) for t, op in zip(attn.qkv(h).chunk(3, -1), 'qkv'))
        logits = torch.einsum('bhqd,bhkd->bhqk', q, torch.cat([keys.expand(2, -1, -1, -1), k], 2)) * attn.scale
        logits[..., 3:] += attn.place_bias(q, tuple(q_grid), tuple(k_grid))
        y = logits.softmax(-1) @ torch.cat([values.expand(2, -1, -1, -1), v], 2) + q
        expected = attn.proj(y.transpose(1, 2).flatten(2))
        assert (block.attention(h, None, (8, 8)) - expected).abs().max() <= 1e-12


def test_what_hiera_does_not_define(tmp_path):
    """One line each; the head's layer trains and travels, the norm beside it belongs to the base."""
    backbone = ROW['timm_hiera']
    for petl in (dict(type='Convpass', mid_dims=2), dict(type='AdaptFormer', mid_dims=2, input='normed', subs='attn')):
        with pytest.raises(ValueError, match=f"{petl['type']}: attention of block 1 gives fewer.*subs='ffn'"):
            backbone.build([petl])
        assert len(backbone.build([dict(petl, subs='ffn')]).petl) == 1
    with pytest.raises(ValueError, match="ResTuning: attention of block 1 gives fewer.*attn='prompt'"):
        backbone.build([dict(type='ResTuning', attn='adapter')])
    for change, why in ((dict(q_pool=0), 'out of order'), (dict(patch_drop_rate=0.1), 'dropped at random'),
                        (dict(mask_unit_size=(4, 2)), 'no squares')):
        with pytest.raises(ValueError, match=rf'\((Unroll|MaskUnitAttention)\) cannot be adapted: .*{why}'):
            backbone.build(**change)
    import timm
    model = timm.create_model(**dict(backbone.kwargs, num_classes=5))
    mmpetl.attach(model, [dict(type='LoRA', rank=2)])
    trains = {n for n, p in model.named_parameters() if p.requires_grad and not n.startswith('petl.')}
    assert trains == {'head.fc.weight', 'head.fc.bias'} and mmpetl.summary(model).head == 32 * 5 + 5
    perturb(model.head.fc), perturb(model.petl)
    mmpetl.save_adapter(model, str(tmp_path / 'a.safetensors'))
    other = timm.create_model(**dict(backbone.kwargs, num_classes=5))
    other.load_state_dict({n: t for n, t in model.state_dict().items() if not n.startswith(('petl.', 'head.fc'))}, strict=False)
    mmpetl.load_adapter(other, str(tmp_path / 'a.safetensors'))
    with torch.no_grad():
        assert torch.equal(other.eval()(backbone.inputs()), model.eval()(backbone.inputs()))


def test_prompts_of_timm_swins_are_those_of_mmpretrain():
    """Deep prompts without pooling: the same outputs as over mmpretrain's Swin with the same weights; others refused."""
    petl = [dict(type='VPT', num_tokens=3, pool_prompts=False)]
    theirs, x = ROW['timm_swin'].build(petl, out_type='featmap'), ROW['timm_swin'].inputs()
    perturb(theirs, 0.1)
    from cases import BACKBONE
    ours = BACKBONE['swin'].build(petl)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith('petl.')}, strict=False)
    ours.petl.load_state_dict(theirs.petl.state_dict())
    with torch.no_grad():
        assert (_run(theirs, x) - _run(ours, x)).abs().max() <= 1e-5
    for options in (dict(deep=False), dict(pool_prompts=True)):
        with pytest.raises(ValueError, match='prompts cannot travel in the stream'):
            ROW['timm_swin'].build([dict(petl[0], **options)])


@pytest.mark.parametrize('name', ['beit', 'eva02', 'hf_timesformer'])
def test_prompts_in_the_stream_and_as_keys_alone_are_the_same(name):
    backbone = ROW[name]
    model = backbone.build([dict(type='VPT', num_tokens=3, pool_prompts=False)])
    perturb(model, 0.1)
    with torch.no_grad():
        short = _run(model, backbone.inputs())
        model.petl.full_prompts = True
        model.petl.refresh()
        assert (_run(model, backbone.inputs()) - short).abs().max() <= 1e-5 * max(1, short.abs().max())


def test_frames_of_timesformer():
    """Tokens come frame after frame; time attends alone; other lengths are refused with both numbers."""
    backbone = ROW['hf_timesformer']
    model = backbone.build([dict(type='STAdapter', mid_dims=4)], out_type='featmap')
    assert _run(model, backbone.inputs()).shape == (2, 32, 4, 4, 4)
    with pytest.raises(ValueError, match='clips of 2 frames.*takes 4 frames'):
        model(torch.randn(1, 3, 2, 32, 32))
    tuned = backbone.build(tune=['*temporal*'])
    assert mmpetl.summary(tuned).tuned == 3 * (4 * (32 * 32 + 32) + 32 * 32 + 32 + 64)
    with pytest.raises(ValueError, match=r"encoder.layer.0 \(TimesformerLayer\).*'joint_space_time'"):
        backbone.build(config=dict(backbone.kwargs['config'], attention_type='joint_space_time'))


@pytest.mark.parametrize('backbone', SISTERS, ids=lambda b: b.name)
def test_peft_folders(backbone, tmp_path):
    """A LoRA goes to a folder of peft and comes back with equal outputs; peft opens it on the plain model."""
    peft = pytest.importorskip('peft')
    x, lora = backbone.inputs(), [dict(type='LoRA', rank=2, ops='q,v,proj,fc1')]
    model = backbone.build(lora)
    if backbone.name == 'uniformer_v2':  # torch's attention calls none of its layers
        for ops in ('q', 'proj'):
            with pytest.raises(ValueError, match='never calls|is no layer'):
                mmpetl.save_peft(backbone.build([dict(lora[0], ops=ops)]), str(tmp_path / ops))
        lora = [dict(lora[0], ops='fc1,fc2')]
        model = backbone.build(lora)
    elif any(not getattr(m, 'calls_qkv', True) for m in model.modules()):
        with pytest.raises(ValueError, match='no effect|never calls'):
            mmpetl.save_peft(model, str(tmp_path))
        lora = [dict(type='LoRA', rank=2, ops='proj,fc1')]
        model = backbone.build(lora)
    perturb(model.petl)
    mmpetl.save_peft(model, str(tmp_path))
    base = {k: v for k, v in model.state_dict().items() if not k.startswith('petl.')}
    other, plain = backbone.build(), backbone.build_upstream()
    other.load_state_dict(base), plain.load_state_dict(base)
    mmpetl.load_peft(other, str(tmp_path))
    opened = peft.PeftModel.from_pretrained(plain, str(tmp_path))
    for each in (model, other, opened):
        each.double()  # float32 kernels differ between processors by more than the comparison allows
    with torch.no_grad():
        expected = _run(model, x.double())
        scale = max(1, expected.abs().max())
        assert (_run(other, x.double()) - expected).abs().max() <= 1e-9 * scale
        opened.eval()
        assert (features(opened.base_model.model(x.double())) - expected).abs().max() <= 1e-9 * scale


@pytest.mark.parametrize('backbone', SISTERS, ids=lambda b: b.name)
def test_plans(backbone):
    """What `mmpetl plan` counts without memory: nothing kept by a frozen base; products of LoRA by the formula."""
    with on_meta():
        model, lora = backbone.build(), backbone.build([dict(type='LoRA', rank=2, ops='qv')])
    x = torch.empty(2, *backbone.shape, device='meta')
    assert saved_bytes(model.train() or model, x) == 0 < saved_bytes(lora.train() or lora, x)
    counted = mmpetl.summary(lora)
    widths = [sum(sum(b.spec.op_dims(op)) for op in 'qv') for b in lora.petl.blocks]
    assert counted.without_head == 2 * sum(widths)
    per_token = sum(2 * width * (math.prod(b.spec.grid) + b.spec.extra_tokens) for width, b in zip(widths, lora.petl.blocks))
    last = lora.petl.blocks[-1]
    if last.tap.tokens_read:  # only the class token asks in the last block
        per_token -= 2 * 2 * last.spec.dim * math.prod(last.spec.grid)
    frames = backbone.shape[1] if len(backbone.shape) > 3 and len(last.spec.grid) == 2 else 1  # each an image
    assert macs(lora, backbone.shape) - macs(model, backbone.shape) == frames * per_token


@pytest.mark.parametrize('dtype', ['bf16', 'int8'])
def test_a_stored_base(dtype):
    """A frozen base in fewer bits gives the same outputs under autocast (bf16), or near ones (int8)."""
    for backbone in SISTERS:
        plain, petl = _plain(backbone), [dict(type='LoRA', rank=2)]
        models = [backbone.build(petl, **options) for options in (dict(), dict(base_dtype=dtype))]
        for model in models:
            model.load_state_dict(plain.state_dict(), strict=False)
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
            one, other = (_run(model, backbone.inputs()).float() for model in models)
        assert (one - other).norm() <= (0.05 if dtype == 'int8' else 1e-6) * one.norm(), backbone.name
