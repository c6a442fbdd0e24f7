# SPDX-License-Identifier: Apache-2.0
"""AIM, ZeroI2V and ST-Adapter over the frames of clips against their formulas, written out with upstream's own modules."""

import math

import pytest
import torch
import torch.nn.functional as F
from cases import ROW, VIT_ARCH, features, perturb

import mmpetl
from mmpetl.backbones.family import FAMILIES, family_named
from mmpetl.features.store import check_cacheable
from mmpetl.methods.dual_path import frame_numbers
from mmpetl.registry import MODELS
from mmpetl.sites import CLIP_POINTS

CLIPS = ROW['clip_frames']


def build(petl, **options):
    torch.manual_seed(0)
    model = CLIPS.build(petl, **options)
    for name, parameter in model.named_parameters():
        if not name.startswith('petl.') and parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    model.double().train(False)
    perturb(model.petl, 0.3)
    return model


def stock(model):
    """Upstream's model of single images with the same weights."""
    plain = ROW['clip'].build_upstream().double()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith('petl.')})
    plain.train(False)
    return plain


def tokens(plain, frames):
    """Frames (T, 3, H, W) -> tokens (T, N, C) before the first norm."""
    x = plain.patch_embed.projection(frames).flatten(2).transpose(1, 2)
    return torch.cat([plain.cls_token.expand(len(x), -1, -1), x], 1) + plain.pos_embed


def attention(layer, h):
    """Softmax attention of h (B, N, C), one head after the other."""
    q, k, v = layer.attn.qkv(h).chunk(3, -1)
    d, found = h.shape[-1] // layer.attn.num_heads, []
    for n in range(layer.attn.num_heads):
        own = slice(n * d, (n + 1) * d)
        found.append(torch.softmax(q[..., own] @ k[..., own].transpose(-2, -1) / d**0.5, -1) @ v[..., own])
    return layer.attn.proj(torch.cat(found, -1))


def mlp(layer, h):
    return layer.ffn.layers[1](layer.ffn.layers[0](h))


def adapter(a, z):
    return F.gelu(z @ a.down.weight.T + a.down.bias) @ a.up.weight.T + a.up.bias


@pytest.mark.parametrize('temporal_input', [False, True])
def test_aim_is_its_formula(temporal_input):
    scales = [0.5, 2., 1.]
    model = build([dict(type='AIM', mid_dims=4, scale=scales, temporal_input=temporal_input)])
    method, plain, clips = model.petl['aim'], stock(model), CLIPS.inputs(dtype=torch.float64)
    expected = []
    for clip in clips:
        x = plain.pre_norm(tokens(plain, clip.transpose(0, 1)) + method.table[:, None])
        for i, layer in enumerate(plain.layers):
            a = method.blocks[str(i)]
            h = layer.ln1(x)
            h = h + adapter(a['time_in'], h) if temporal_input else h
            along = torch.stack([attention(layer, h[:, n][None])[0] for n in range(x.shape[1])], 1)
            x = x + adapter(a['time'], along)
            y = attention(layer, layer.ln1(x))
            x = x + y + adapter(a['space'], y)
            h = layer.ln2(x)
            x = x + mlp(layer, h) + scales[i] * adapter(a['joint'], h)
        expected.append(plain.ln1(x)[:, 0].mean(0))
    assert (features(model(clips)) - torch.stack(expected)).abs().max() <= 1e-12


@pytest.mark.parametrize('offsets, ffn_out', [((-1, 1), True), ((1, -2, 2), False)])
def test_zero_i2v_is_its_formula(offsets, ffn_out):
    scales = [0.5, 2., 1.]
    model = build([dict(type='ZeroI2V', mid_dims=4, scale=scales, offsets=offsets, ffn_out=ffn_out)])
    method, plain, clips = model.petl['zeroi2v'], stock(model), CLIPS.inputs(dtype=torch.float64)

    def adapted(a, z, scale):
        return z + scale * ((z @ a.down.weight.T + a.down.bias) @ a.up.weight.T + a.up.bias)

    def looking(layer, h):
        q, k, v = layer.attn.qkv(h).chunk(3, -1)
        rows = []
        for t in range(4):
            heads = []
            for n in range(4):
                own = slice(8 * n, 8 * n + 8)
                s = t + offsets[n] if n < len(offsets) and 0 <= t + offsets[n] < 4 else t
                heads.append(torch.softmax(q[t][:, own] @ k[s][:, own].T / 8**0.5, -1) @ v[s][:, own])
            rows.append(layer.attn.proj(torch.cat(heads, -1)))
        return torch.stack(rows)

    expected = []
    for clip in clips:
        x = plain.pre_norm(tokens(plain, clip.transpose(0, 1)) + method.table[:, None])
        for i, layer in enumerate(plain.layers):
            a, s = method.blocks[str(i)], scales[i]
            x = x + adapted(a['attn_out'], looking(layer, adapted(a['attn_in'], layer.ln1(x), s)), s)
            h = mlp(layer, adapted(a['ffn_in'], layer.ln2(x), s))
            x = x + (adapted(a['ffn_out'], h, s) if ffn_out else h)
        expected.append(plain.ln1(x)[:, 0].mean(0))
    assert (features(model(clips)) - torch.stack(expected)).abs().max() <= 1e-12


def test_zero_i2v_starts_as_the_frozen_network_that_looks_elsewhere():
    model = CLIPS.build([dict(type='ZeroI2V', offsets=[1])]).double()
    model.train(False)
    assert sum(p.numel() for p in model.petl.parameters()) == 4 * 32 + 3 * 4 * (2 * 32 * 8 + 8 + 32)
    still = CLIPS.inputs(dtype=torch.float64)[:, :, :1].expand(-1, -1, 4, -1, -1)
    with torch.no_grad(), mmpetl.disabled(model):
        plain = features(model(still))
    with torch.no_grad():
        assert (features(model(still)) - plain).abs().max() <= 1e-12, 'all frames are alike'
        moving = features(model(CLIPS.inputs(dtype=torch.float64)))
        with mmpetl.disabled(model):
            assert (features(model(CLIPS.inputs(dtype=torch.float64))) - moving).abs().max() > 1e-6


def dual_path(**options):
    return build([dict(type='DualPath', frame_grid=(2, 2), spatial_frames=2, mid_dims=4, **options)])


def test_dual_path_is_its_formula():
    model = dual_path()
    method, plain, clips = model.petl['dualpath'], stock(model), CLIPS.inputs(dtype=torch.float64)

    def code(numbers):
        pairs = [(math.sin(n * 10000**(-2 * k / 32)), math.cos(n * 10000**(-2 * k / 32))) for n in numbers
                 for k in range(16)]
        return torch.tensor(pairs, dtype=torch.float64).reshape(len(numbers), 32)

    expected = []
    for clip in clips:
        small = clip.unflatten(2, (16, 2)).unflatten(-1, (16, 2)).mean((3, 5))  # (3, T, 16, 16)
        grid = torch.cat([torch.cat([small[:, 0], small[:, 1]], 2), torch.cat([small[:, 2], small[:, 3]], 2)], 1)
        base = tokens(plain, torch.stack([grid, clip[:, 0], clip[:, 2]])) - plain.pos_embed
        # Tokens are 8 x 8 pixels, so every quarter of the grid has 2 x 2 of them.
        numbers = [0, *(1 + 2 * (row // 2) + col // 2 for row in range(4) for col in range(4))]
        t = plain.pre_norm(base[:1] + method.positions_of_grids + code(numbers))
        s = plain.pre_norm(base[1:] + plain.pos_embed)
        for i, layer in enumerate(plain.layers):
            a = method.blocks[str(i)]
            t = t + adapter(a['time_attn'], attention(layer, adapter(a['time_in'], layer.ln1(t))))
            t = t + adapter(a['time_ffn'], mlp(layer, layer.ln2(t)))
            h = layer.ln1(s)
            s = s + attention(layer, h) + adapter(a['space_attn'], h)
            h = layer.ln2(s)
            s = s + mlp(layer, h) + adapter(a['space_ffn'], h)
        expected.append(torch.cat([plain.ln1(t)[0, 0], plain.ln1(s)[:, 0].mean(0)]))
    assert (features(model(clips)) - torch.stack(expected)).abs().max() <= 1e-12


def test_dual_path_numbers_frames_across_tokens_and_grids():
    """As published: 4 x 4 frames over 14 x 14 tokens, where the fourth token shows halves of two frames."""
    numbers = frame_numbers(2, (4, 4), (14, 14), (16, 16), torch.zeros((), dtype=torch.float64)).view(2, 14, 14)
    column = [0, 0, 0, .5, 1, 1, 1, 2, 2, 2, 2.5, 3, 3, 3]
    assert numbers[0].tolist() == [[1 + 4 * row + col for col in column] for row in column]
    assert torch.equal(numbers[1], numbers[0] + 16)


def test_dual_path_counts_starts_and_moves():
    model = CLIPS.build([dict(type='DualPath', frame_grid=(2, 1), spatial_frames=4)]).double()
    method = model.petl['dualpath']
    assert sum(p.numel() for p in method.parameters()) == 3 * 5 * (2 * 32 * 8 + 8 + 32) + 17 * 32
    assert method.out_dims == 64 and features(model(CLIPS.inputs(dtype=torch.float64))).shape == (2, 64)
    for adapted in method.blocks['0'].values():
        bound = 32**-0.5
        assert 0.9 * bound < adapted.down.weight.abs().max() <= bound and not adapted.up.weight.any()
    assert abs(method.positions_of_grids.std() * 32**0.5 - 1) < 0.1
    # At the start no block changes a token of a grid, and frames see the frozen network.
    model.eval()
    clips = CLIPS.inputs(dtype=torch.float64)
    with torch.no_grad():
        found = features(model(clips))
        with mmpetl.disabled(model):
            assert (features(model(clips)) - found[:, 32:]).abs().max() <= 1e-12
    # The first adapter of the temporal path stands behind two zeros: its gradient comes with the third step.
    model.train()
    before = [p.detach().clone() for p in method.parameters()]
    optimizer = torch.optim.SGD(method.parameters(), lr=1.)
    for _ in range(3):
        optimizer.zero_grad()
        (features(model(clips)) * torch.linspace(-1, 1, 64)).square().sum().backward()
        optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(before, method.parameters()))


def test_side4video_is_its_formula():
    model = build([dict(type='Side4Video', width=8, heads=2)])
    method, plain, clips = model.petl['side4video'], stock(model), CLIPS.inputs(dtype=torch.float64)
    for name, buffer in method.named_buffers():  # as after some training
        if name.endswith('running_mean'):
            buffer.copy_(torch.linspace(-1, 1, 8))
        elif name.endswith('running_var'):
            buffer.copy_(torch.linspace(0.5, 2, 8))

    def batch_norm(m, z):
        return (z - m.running_mean) / (m.running_var + 1e-5).sqrt() * m.weight + m.bias

    def layer_norm(m, z):
        z = z - z.mean(-1, keepdim=True)
        return z / (z.square().mean(-1, keepdim=True) + 1e-5).sqrt() * m.weight + m.bias

    def linear(m, z):
        return z @ m.weight.T + m.bias

    expected = []
    for clip in clips:
        x = plain.pre_norm(tokens(plain, clip.transpose(0, 1)))
        s, padded = torch.zeros(4, 4, 4, 8, dtype=torch.float64), F.pad(clip, (0, 0, 0, 0, 1, 1))
        for t in range(4):
            for row in range(4):
                for col in range(4):
                    box = padded[:, t:t + 3, 8 * row:8 * row + 8, 8 * col:8 * col + 8]
                    s[t, row, col] = (method.stem.weight * box).sum((1, 2, 3, 4)) + method.stem.bias
        s = batch_norm(method.stem_norm, s.flatten(1, 2))
        for i, layer in enumerate(plain.layers):
            b = method.blocks[str(i)]
            x = x + attention(layer, layer.ln1(x))
            x = x + mlp(layer, layer.ln2(x))
            u = linear(b.read, layer_norm(b.read_norm, x))
            s = 0.5 * s + 0.5 * u[:, 1:]
            z, near = linear(b.conv_in, batch_norm(b.conv_norm, s)), []
            for t in range(4):
                near.append(sum(b.conv.weight[:, 0, k + 1] * z[t + k] for k in (-1, 0, 1) if 0 <= t + k < 4) + b.conv.bias)
            s = s + linear(b.conv_out, torch.stack(near))
            gathered = []
            for t in range(4):
                token = torch.zeros(8, dtype=torch.float64)
                token[:4] = u[t + 1, 0, :4] if t < 3 else 0
                token[4:] = u[t - 1, 0, 4:] if t > 0 else 0
                h = layer_norm(b.attn_norm, torch.cat([token[None], s[t] + method.table]))
                q, k, v = linear(b.qkv, h).chunk(3, -1)
                heads = [torch.softmax(q[1:, own] @ k[:, own].T / 2, -1) @ v[:, own] for own in (slice(0, 4), slice(4, 8))]
                gathered.append(linear(b.proj, torch.cat(heads, -1)))
            s = s + torch.stack(gathered)
            s = s + linear(b.fc2, F.gelu(linear(b.fc1, batch_norm(b.ffn_norm, s))))
        expected.append(batch_norm(method.norm, s).mean((0, 1)))
    assert (features(model(clips)) - torch.stack(expected)).abs().max() <= 1e-12


def test_side4video_counts_starts_and_keeps_the_base_without_gradient():
    model = CLIPS.build([dict(type='Side4Video', width=64)])
    method, c, d = model.petl['side4video'], 32, 64
    assert sum(p.numel() for p in method.parameters()) == 3 * (2 * c + c * d + 22 * d + 14 * d * d) + (
        3 * 3 * 64 * d + 3 * d) + 16 * d + 2 * d
    block = method.blocks['1']
    spreads = {'read': (2 * d)**-0.5, 'qkv': d**-0.5, 'proj': (24 * d)**-0.5, 'fc1': (2 * d)**-0.5, 'fc2': (24 * d)**-0.5}
    for name, std in spreads.items():
        assert abs(getattr(block, name).weight.std() / std - 1) < 0.1, name
    assert not block.qkv.bias.any() and not block.proj.bias.any() and abs(method.table.std() / 0.01 - 1) < 0.1
    # Whoever stands in the graph of the feature is the side network's.
    model.train()
    tensors, kept = [], lambda t: tensors.append(t) or t
    with torch.autograd.graph.saved_tensors_hooks(kept, lambda t: t):
        features(model(CLIPS.inputs())).sum().backward()
    base = {p.data_ptr() for n, p in model.named_parameters() if not n.startswith('petl.')}
    assert tensors and not any(t.data_ptr() in base for t in tensors)


def test_side4video_reads_some_blocks():
    model = build([dict(type='Side4Video', width=8, layers='0,1')])
    assert model.petl['side4video'].side_reads == ('input', 'x') and set(model.petl['side4video'].blocks) == {'0', '1'}
    clips = CLIPS.inputs(dtype=torch.float64)
    before = features(model(clips))
    with torch.no_grad():
        model.layers[2].ln1.weight.add_(1.)
        assert torch.equal(features(model(clips)), before)
        model.layers[1].ln1.weight.add_(1.)
        assert not torch.equal(features(model(clips)), before)


def test_the_feature_cache_refuses_frames():
    with pytest.raises(ValueError, match='Side4Video reads the frames of clips, which the feature cache cannot tell'):
        check_cacheable(CLIPS.build([dict(type='Side4Video', width=8)]))


def test_aim_drops_whole_branches():
    """The temporal branch of a clip and the joint branch of a frame; what is kept is scaled up."""
    model = build([dict(type='AIM', mid_dims=4, drop_path_rate=0.5)])
    method, x = model.petl['aim'], torch.randn(8 * 4, 17, 32, dtype=torch.float64)
    model.petl.taps[0].frames = 4  # as within a forward pass
    changes = [lambda: method.on_stream(0, x) - x, lambda: method.on_branch(0, 'ffn', x, x, 0 * x)]
    for change, samples in zip(changes, (8, 8 * 4)):
        method.eval()
        whole = change().unflatten(0, (samples, -1)).flatten(1)
        method.train()
        found = change().unflatten(0, (samples, -1)).flatten(1)
        kept = found.abs().sum(1) > 0
        assert 0 < kept.sum() < samples and torch.allclose(found, 2 * whole * kept[:, None])


def test_aim_counts_and_starts():
    model = CLIPS.build([dict(type='AIM')])
    assert sum(p.numel() for p in model.petl.parameters()) == 4 * 32 + 3 * 3 * (2 * 32 * 8 + 8 + 32)
    for adapter in model.petl['aim'].blocks['0'].values():
        assert 0.01 < adapter.down.weight.std() < 0.03 and not adapter.up.weight.any()


@pytest.mark.parametrize('subs', [('attn', ), ('attn', 'ffn')])
@pytest.mark.parametrize('frame_pool', ['before_norm', 'after_norm'])
def test_st_adapter_over_frames_is_its_formula(subs, frame_pool):
    """The published model averages the class tokens before the last norm."""
    model = build([dict(type='STAdapter', mid_dims=4, kernel=(3, 1, 1), subs=subs)], frame_pool=frame_pool)
    method, plain, clips = model.petl['stadapter'], stock(model), CLIPS.inputs(dtype=torch.float64)

    def adapted(a, x):
        z = x[:, 1:] @ a.down.weight.T + a.down.bias  # (T, H W, mid)
        w, out = a.conv.weight[:, 0, :, 0, 0], []
        for t in range(len(z)):
            near = [w[:, 1 + s] * z[t + s] for s in (-1, 0, 1) if 0 <= t + s < len(z)]
            out.append((sum(near) + a.conv.bias) @ a.up.weight.T + a.up.bias)
        return torch.cat([x[:, :1], x[:, 1:] + torch.stack(out)], 1)

    expected = []
    for clip in clips:
        x = plain.pre_norm(tokens(plain, clip.transpose(0, 1)))
        for i, layer in enumerate(plain.layers):
            a = method.blocks[str(i)]
            x = adapted(a['attn'], x)
            x = x + attention(layer, layer.ln1(x))
            x = adapted(a['ffn'], x) if 'ffn' in subs else x
            x = x + mlp(layer, layer.ln2(x))
        first = x[:, 0]
        expected.append(plain.ln1(first.mean(0)) if frame_pool == 'before_norm' else plain.ln1(first).mean(0))
    assert (features(model(clips)) - torch.stack(expected)).abs().max() <= 1e-12


def test_an_adapter_of_another_pooling_or_for_images_is_refused(tmp_path):
    """They give different features from the same tensors."""
    before, after = (build([dict(type='LoRA', rank=2)], frame_pool=pool) for pool in ('before_norm', 'after_norm'))
    mmpetl.save_adapter(before, str(tmp_path / 'a.safetensors'))
    with pytest.raises(ValueError, match="of frames averaged before the norm' in the adapter and 'cls_token'"):
        mmpetl.load_adapter(after, str(tmp_path / 'a.safetensors'))
    with pytest.raises(ValueError, match=r'the grid of tokens: \[4, 4, 4\] in the adapter and \[4, 4\] here'):
        mmpetl.load_adapter(ROW['clip'].build([dict(type='LoRA', rank=2)]), str(tmp_path / 'a.safetensors'))
    mmpetl.load_adapter(build([dict(type='LoRA', rank=2)], frame_pool='before_norm'), str(tmp_path / 'a.safetensors'))


def test_methods_for_images_run_on_clips_and_merge():
    """The merged weights are those of upstream's model for single images."""
    model = build([dict(type='LoRA', rank=2, ops='qv')])
    clips = CLIPS.inputs(dtype=torch.float64)
    with torch.no_grad():
        expected = features(model(clips))
        mmpetl.merge(model)
        plain = stock(model)
        frames = torch.stack([features(plain(clips[:, :, t])) for t in range(4)])
    assert (frames.mean(0) - expected).abs().max() <= 1e-12


def test_clips_of_another_length():
    """A convolution over time takes any length; a table of rows takes its own."""
    longer = torch.randn(2, 3, 6, 32, 32, dtype=torch.float64)
    assert features(build([dict(type='STAdapter', mid_dims=4)])(longer)).shape == (2, 32)
    with pytest.raises(ValueError, match='made for clips of 4 frames, got 6'):
        build([dict(type='AIM')])(longer)
    with pytest.raises(ValueError, match='ZeroI2V: made for clips of 4 frames, got 6'):
        build([dict(type='ZeroI2V')])(longer)
    with pytest.raises(ValueError, match='DualPath: made for clips of 4 frames, got 6'):
        dual_path()(longer)
    assert features(build([dict(type='Side4Video', width=8)])(longer)).shape == (2, 8)
    with pytest.raises(ValueError, match='Side4Video: made for frames of 16 patches, got 20: set img_size'):
        build([dict(type='Side4Video', width=8)])(torch.randn(2, 3, 4, 40, 32, dtype=torch.float64))
    with pytest.raises(ValueError, match='made for frames of 32 x 32 pixels, got 40 x 32: set img_size'):
        dual_path()(torch.randn(2, 3, 4, 40, 32, dtype=torch.float64))


@pytest.mark.parametrize('options, words', [
    (dict(frames=0, petl=[dict(type='AIM')]), 'AIM: needs a backbone for images that reads clips: set frames'),
    (dict(frames=0, petl=[dict(type='ZeroI2V')]), 'ZeroI2V: needs a backbone for images that reads clips: set frames'),
    (dict(frames=0, petl=[dict(type='Side4Video')]), 'Side4Video: needs a backbone for images that reads clips'),
    (dict(petl=[dict(type='Side4Video', width=9)]), 'width=9 must divide by 2 and by its 1 heads'),
    (dict(petl=[dict(type='Side4Video', width=8, heads=3)]), 'width=8 must divide by 2 and by its 3 heads'),
    (dict(petl=[dict(type='Side4Video')], with_cls_token=False, out_type='avg_featmap'), 'needs a class token'),
    (dict(petl=[dict(type='ZeroI2V', offsets=[1, 0])]), 'give one number other than 0 for each of the first heads'),
    (dict(petl=[dict(type='ZeroI2V', offsets=[1] * 5)]), 'of which there are 4'),
    (dict(frames=0, petl=[dict(type='DualPath')]), 'DualPath: needs a backbone for images that reads clips: set frames'),
    (dict(petl=[dict(type='DualPath')]), 'clips of 4 frames must fill whole grids of 4 x 4'),
    (dict(petl=[dict(type='DualPath', frame_grid=(2, 2), spatial_frames=3)]), 'be a multiple of spatial_frames=3'),
    (dict(petl=[dict(type='DualPath', frame_grid=(2, ), spatial_frames=1)]), 'frame_grid must be two numbers'),
    (dict(petl=[dict(type='DualPath', frame_grid=(3, 1), spatial_frames=1)], frames=3), 'cannot be scaled down by'),
    (dict(petl=[dict(type='DualPath', frame_grid=(2, 2), spatial_frames=1)], frame_pool='before_norm'),
     'DualPath says what becomes of their features'),
    (dict(petl=[dict(type='AIM'), dict(type='DualPath', frame_grid=(2, 2), spatial_frames=1)]),
     'so AIM, which acts along its frames, cannot stand beside it'),
    (dict(frames=-1), 'frames must be a whole number'),
    (dict(frame_pool='mean'), "frame_pool must be 'after_norm' or 'before_norm'"),
    (dict(frame_pool='mean', frames=0), "frame_pool must be 'after_norm' or 'before_norm'"),
    (dict(frame_pool='before_norm', frames=0), "frame_pool='before_norm' averages the frames of clips: set frames"),
    (dict(frame_pool='before_norm', final_norm=False), "frame_pool='before_norm' needs a last norm"),
    (dict(out_type='featmap'), "out_type must be 'cls_token' or 'avg_featmap'"),
    (dict(petl=[dict(type='VQT', num_tokens=1)]), 'VQT is not defined over the frames of a clip'),
])
def test_refusals(options, words):
    config = {'type': 'mmpetl.VisionTransformer', 'arch': VIT_ARCH, 'img_size': 32, 'patch_size': 8, 'frames': 4}
    with pytest.raises(ValueError, match=words) as error:
        MODELS.build({**config, **options})
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', FAMILIES)
def test_a_family_without_clips_offers_no_point_of_theirs(name):
    family = family_named(name)
    assert family.points & CLIP_POINTS == (CLIP_POINTS if family.clips else set())


def test_other_families_and_inputs_are_refused():
    with pytest.raises(ValueError, match='frames=2: SwinTransformer cannot read clips frame by frame'):
        ROW['swin'].build(frames=2)
    with pytest.raises(ValueError, match=r'reads clips \(B, 3, T, H, W\) by frames'):
        CLIPS.build()(torch.randn(1, 3, 32, 32))
