# SPDX-License-Identifier: Apache-2.0
"""Stock modules -> names of other libraries: the other library opens them strictly and computes the same."""

import json

import pytest
import torch
from safetensors.torch import save_file

from mmpetl.weights import convert
from mmpetl.weights.archs import known_elsewhere
from mmpetl.weights.export import export_names, hf_config, libraries

TOL = 1e-5
VIT = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=128)
DEPTHS, HEADS = (2, 2, 1), (1, 2, 4)


def vit(**kwargs):
    from mmpretrain.models import VisionTransformer
    return VisionTransformer(**{**dict(arch=VIT, img_size=16, patch_size=4, out_type='raw'), **kwargs})


def clip():
    return vit(
        pre_norm=True,
        norm_cfg=dict(type='LN', eps=1e-5),
        layer_cfgs=dict(act_cfg=dict(type='mmpretrain.QuickGELU')),
        out_type='cls_token')


def swin():
    from mmpretrain.models import SwinTransformer
    arch = dict(embed_dims=16, depths=list(DEPTHS), num_heads=list(HEADS))
    return SwinTransformer(arch=arch, img_size=64, window_size=4, out_indices=(2,))


def videomae(**kwargs):
    from mmaction.models.backbones.vit_mae import VisionTransformer
    return VisionTransformer(
        **{
            **dict(
                img_size=16,
                patch_size=4,
                embed_dims=32,
                depth=2,
                num_heads=2,
                mlp_ratio=4,
                qkv_bias=True,
                num_frames=4),
            **kwargs
        })


def video_swin():
    from mmaction.models.backbones.swin import SwinTransformer3D
    return SwinTransformer3D(
        arch=dict(embed_dims=16, depths=[1, 1], num_heads=[1, 2]),
        window_size=(2, 4, 4),
        out_indices=(1, ),
        pretrained2d=False)


def difference(a, b):
    assert a.shape == b.shape and b.abs().max() > 0.1
    return float((a - b).detach().abs().max())


def with_head(module, classes=5):
    generator = torch.Generator().manual_seed(3)
    dim = module.embed_dims if not hasattr(module, 'stages') else module.num_features[-1]
    return {**module.state_dict(), 'head.weight': torch.randn(classes, dim, generator=generator),
            'head.bias': torch.randn(classes, generator=generator)}


def open_hf(state, config, name, folder):
    """Open exported weights as a user would: from_pretrained on a folder; nothing may be newly initialised or left
    over."""
    transformers = pytest.importorskip('transformers', reason='peer transformers is not installed')
    save_file(state, folder / 'model.safetensors', {'format': 'pt'})
    (folder / 'config.json').write_text(json.dumps(config))
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys')), info
    return model.train(False)


@pytest.mark.peers
@pytest.mark.parametrize('scale', [0., 1.])
def test_vit_to_timm(randomise, image, scale):
    pytest.importorskip('timm', reason='peer timm is not installed')
    from timm.models.vision_transformer import VisionTransformer
    source = randomise(vit(layer_scale_init_value=scale))
    peer = VisionTransformer(
        img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=5, init_values=scale or None)
    state = with_head(source)
    peer.load_state_dict(export_names(state, 'vit', 'timm'), strict=True)
    peer.train(False)
    x = image(2, 3, 16, 16)
    assert difference(peer.forward_features(x), source(x)[0]) < TOL
    assert difference(
        peer(x), torch.nn.functional.linear(source(x)[0][:, 0], state['head.weight'], state['head.bias'])) < TOL


@pytest.mark.peers
def test_vit_to_hugging_face(randomise, image, tmp_path):
    source = randomise(vit())
    state = with_head(source)
    peer = open_hf(
        export_names(state, 'vit', 'hf'), hf_config(state, 'vit', num_heads=2), 'ViTForImageClassification', tmp_path)
    x = image(2, 3, 16, 16)
    assert difference(
        peer(x).logits, torch.nn.functional.linear(source(x)[0][:, 0], state['head.weight'], state['head.bias'])) < TOL


@pytest.mark.peers
def test_dinov2_to_hugging_face(randomise, image, tmp_path):
    source = randomise(vit(layer_scale_init_value=1.))
    state = source.state_dict()
    peer = open_hf(export_names(state, 'vit', 'hf'), hf_config(state, 'vit', num_heads=2), 'Dinov2Model', tmp_path)
    x = image(2, 3, 16, 16)
    assert difference(peer(x).last_hidden_state, source(x)[0]) < TOL


@pytest.mark.peers
def test_a_classifier_of_dinov2_to_hugging_face(randomise, image, tmp_path):
    """That of transformers reads the mean of the patches beside the class token."""
    source = randomise(vit(layer_scale_init_value=1.))
    state = with_head(source)
    config = hf_config(state, 'vit', num_heads=2)
    assert config['architectures'] == ['Dinov2ForImageClassification'] and state['head.weight'].shape[1] == 32
    peer = open_hf(export_names(state, 'vit', 'hf'), config, 'Dinov2ForImageClassification', tmp_path)
    x = image(2, 3, 16, 16)
    assert difference(
        peer(x).logits, torch.nn.functional.linear(source(x)[0][:, 0], state['head.weight'], state['head.bias'])) < TOL


@pytest.mark.peers
def test_clip_to_hugging_face_and_open_clip(randomise, image, tmp_path):
    open_clip = pytest.importorskip('open_clip', reason='peer open_clip is not installed')
    source = randomise(clip())
    state = {**source.state_dict(), 'proj': image(32, 24, seed=4)}
    x = image(2, 3, 16, 16)
    want = source(x)[0] @ state['proj']
    peer = open_hf(
        export_names(state, 'clip', 'hf'), hf_config(state, 'clip', 2, 1e-5), 'CLIPVisionModelWithProjection', tmp_path)
    assert difference(peer(x).image_embeds, want) < TOL
    vision = open_clip.CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=4, image_size=16)
    text = open_clip.CLIPTextCfg(context_length=8, vocab_size=50, width=16, heads=2, layers=1)
    tower = open_clip.model.CLIP(24, vision, text, quick_gelu=True).visual
    tower.load_state_dict(export_names(state, 'clip', 'openai'), strict=True)
    assert difference(tower.train(False)(x), want) < TOL


@pytest.mark.peers
def test_videomae_to_hugging_face(randomise, image, tmp_path):
    source = randomise(videomae())
    state = with_head(source)
    config = hf_config(state, 'videomae', num_heads=2, image_size=16, num_frames=4)
    peer = open_hf(export_names(state, 'videomae', 'hf'), config, 'VideoMAEForVideoClassification', tmp_path)
    peer.fc_norm.eps = 1e-6  # transformers takes 1e-5 whatever the config says
    x = image(2, 3, 4, 16, 16)
    want = torch.nn.functional.linear(source(x), state['head.weight'], state['head.bias'])
    assert difference(peer(x.transpose(1, 2)).logits, want) < TOL


@pytest.mark.peers
def test_swin_to_timm_and_hugging_face(randomise, image, tmp_path):
    pytest.importorskip('timm', reason='peer timm is not installed')
    from timm.models.swin_transformer import SwinTransformer
    source = randomise(swin())
    state = with_head(source)
    x = image(2, 3, 64, 64)
    want = source(x)[0]
    peer = SwinTransformer(
        img_size=64, patch_size=4, window_size=4, embed_dim=16, depths=DEPTHS, num_heads=HEADS, num_classes=5)
    peer.load_state_dict(export_names(state, 'swin', 'timm'), strict=True)
    assert difference(peer.train(False).forward_features(x).permute(0, 3, 1, 2), want) < TOL
    config = dict(
        model_type='swin',
        image_size=64,
        patch_size=4,
        embed_dim=16,
        depths=list(DEPTHS),
        num_heads=list(HEADS),
        window_size=4,
        num_labels=5)
    peer = open_hf(export_names(state, 'swin', 'hf'), config, 'SwinForImageClassification', tmp_path)
    assert difference(peer.swin(x).last_hidden_state, want.flatten(2).transpose(1, 2)) < TOL


@pytest.mark.parametrize('arch, build', [('vit', vit), ('clip', clip), ('swin', swin), ('videomae', videomae),
                                         ('video_swin', video_swin)])
def test_every_export_converts_back(randomise, arch, build):
    """convert() is the inverse of export_names() for every pair that there is."""
    state = randomise(build()).state_dict()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    assert libraries(arch)
    for library in libraries(arch):
        back, report = convert(export_names(state, arch, library), shapes, arch)
        assert report.source != 'mmpretrain-vit' and not report.initial
        for key in state:
            assert torch.allclose(back[key], state[key], atol=1e-6), (library, key)


def test_refusals(randomise):
    state = randomise(vit()).state_dict()
    with pytest.raises(ValueError, match="no export of 'vit' to 'keras'; known for it: hf, timm"):
        export_names(state, 'vit', 'keras')
    with pytest.raises(ValueError, match='merge the adapter'):
        export_names({**state, 'petl.0.down': torch.zeros(1)}, 'vit', 'timm')
    with pytest.raises(ValueError, match='hf has no name for pre_norm.weight'):
        export_names({**state, 'pre_norm.weight': torch.zeros(32)}, 'vit', 'hf')
    with pytest.raises(ValueError, match="no names of 'timm' are known for 'beit', but for clip, .*: keep the adapter file"):
        known_elsewhere(state, 'beit', 'timm')
