# SPDX-License-Identifier: Apache-2.0
"""CLIP image towers -> mmpretrain's ViT with a norm before the blocks: same features, same embeddings."""

import pytest
import torch

from mmpetl.weights import convert, detect, load_file

TOL = 1e-5


def stock(width=32, heads=2, **kwargs):
    from mmpretrain.models import VisionTransformer
    arch = dict(embed_dims=width, num_layers=2, num_heads=heads, feedforward_channels=4 * width)
    base = dict(
        arch=arch,
        img_size=16,
        patch_size=4,
        out_type='cls_token',
        pre_norm=True,
        norm_cfg=dict(type='LN', eps=1e-5),
        layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU')))
    return VisionTransformer(**{**base, **kwargs})


def difference(a, b):
    assert a.shape == b.shape and b.abs().max() > 0.1
    return float((a - b).detach().abs().max())


def open_clip_model():
    open_clip = pytest.importorskip('open_clip', reason='peer open_clip is not installed')
    vision = open_clip.CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=4, image_size=16)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=50, width=16, heads=2, layers=1)
    return open_clip.model.CLIP(24, vision, text, quick_gelu=True)


@pytest.mark.peers
@pytest.mark.parametrize('prefix', ['', 'module.'])
def test_open_clip(randomise, image, fill, prefix):
    peer = randomise(open_clip_model())
    state = {prefix + key: value for key, value in peer.state_dict().items()}
    assert detect(state) == 'openai-clip'
    mine, report = fill(stock(), state, 'clip')
    x = image(2, 3, 16, 16)
    assert difference(mine(x)[0] @ report.extras['proj'], peer.encode_image(x)) < TOL
    for key in ('transformer.resblocks.0.ln_1.weight', 'token_embedding.weight'):
        assert report.left_out[prefix + key] == 'text tower'
    assert not report.initial and not report.generated and 'QuickGELU' in str(report)


@pytest.mark.peers
@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
def test_openai_torchscript_archive(randomise, image, fill, tmp_path):
    """OpenAI publishes TorchScript archives in half precision with three integers beside the weights."""
    peer = randomise(open_clip_model())

    class Tower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.visual = peer.visual
            self.register_buffer('input_resolution', torch.tensor(16))
            self.register_buffer('context_length', torch.tensor(77))
            self.register_buffer('vocab_size', torch.tensor(49408))

        def forward(self, x):
            return self.visual(x)

    x = image(2, 3, 16, 16)
    want = peer.encode_image(x)
    archive = torch.jit.trace(Tower(), x, check_trace=False)
    torch.jit.save(archive, tmp_path / 'ViT-B-16.pt')
    state = load_file(tmp_path / 'ViT-B-16.pt')['state_dict']
    mine, report = fill(stock(), state, 'clip')
    assert difference(mine(x)[0] @ report.extras['proj'], want) < TOL
    half = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    mine, report = fill(stock(), half, 'clip')
    assert report.extras['proj'].dtype == torch.float32
    assert difference(mine(x)[0] @ report.extras['proj'], want) < 0.05


@pytest.mark.peers
@pytest.mark.parametrize('kind', ['CLIPVisionModelWithProjection', 'CLIPModel'])
def test_hugging_face(randomise, image, fill, tmp_path, kind):
    transformers = pytest.importorskip('transformers', reason='peer transformers is not installed')
    vision = dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=16,
        patch_size=4,
        projection_dim=24,
        attn_implementation='eager')
    if kind == 'CLIPModel':
        text = dict(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
        config = transformers.CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
        peer = randomise(transformers.CLIPModel(config))
    else:
        peer = randomise(transformers.CLIPVisionModelWithProjection(transformers.CLIPVisionConfig(**vision)))
    x = image(2, 3, 16, 16)
    pooled = peer.vision_model(pixel_values=x).pooler_output
    peer.save_pretrained(tmp_path)
    for state in (peer.state_dict(), load_file(tmp_path / 'model.safetensors')['state_dict']):
        # in files of transformers < 4.31
        state = {**state, 'vision_model.embeddings.position_ids': torch.arange(17)[None]}
        assert detect(state) == 'hf-clip'
        mine, report = fill(stock(), state, 'clip')
        assert difference(mine(x)[0], pooled) < TOL
        assert difference(mine(x)[0] @ report.extras['proj'], peer.visual_projection(pooled)) < TOL


@pytest.mark.parametrize('pre_norm', [False, True])
def test_the_name_of_the_other_architecture_is_refused(randomise, pre_norm):
    """Beside no backbone's shapes only the keys say what the file is made for."""
    state, archs = randomise(stock(pre_norm=pre_norm)).state_dict(), ('vit', 'clip')
    assert convert(state, None, archs[pre_norm])[1].arch == archs[pre_norm]
    with pytest.raises(ValueError, match=f"made for the architecture '{archs[pre_norm]}', not for '{archs[not pre_norm]}'"):
        convert(state, None, archs[not pre_norm])


@pytest.mark.peers
def test_not_into_a_plain_vit(randomise):
    shapes = {key: tuple(value.shape) for key, value in stock(pre_norm=False).state_dict().items()}
    with pytest.raises(ValueError, match='pre_norm') as error:
        convert(randomise(open_clip_model()).state_dict(), shapes, 'vit')
    assert '\n' not in str(error.value)
