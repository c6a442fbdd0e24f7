# SPDX-License-Identifier: Apache-2.0
"""AIM and ST-Adapter over the frames of clips against their formulas, written out with upstream's own modules."""

import pytest
import torch
import torch.nn.functional as F
from cases import ROW, VIT_ARCH, features, perturb

import mmpetl
from mmpetl.registry import MODELS

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


@pytest.mark.parametrize('options, words', [
    (dict(frames=0, petl=[dict(type='AIM')]), 'AIM: needs a backbone for images that reads clips: set frames'),
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


def test_other_families_and_inputs_are_refused():
    with pytest.raises(ValueError, match='frames=2: SwinTransformer cannot read clips frame by frame'):
        ROW['swin'].build(frames=2)
    with pytest.raises(ValueError, match=r'reads clips \(B, 3, T, H, W\) by frames'):
        CLIPS.build()(torch.randn(1, 3, 32, 32))
