# SPDX-License-Identifier: Apache-2.0
"""LoRA adapters -> peft: opened by peft on the other library's model, they give the outputs of the adapted backbone."""

import pytest
import torch

from mmpetl.registry import MODELS
from mmpetl.weights.export import export_names, hf_config
from mmpetl.weights.export_peft import lora_to_peft, write_peft

pytestmark = pytest.mark.peers
TOL = 1e-5


def adapted(kind, lora, **more):
    from mmengine.registry import init_default_scope
    init_default_scope('mmaction' if kind == 'VideoMAE' else 'mmpretrain')
    base = dict(img_size=16, patch_size=4, petl=[dict(type='LoRA', **lora)])
    if kind == 'VideoMAE':
        base |= dict(embed_dims=32, depth=2, num_heads=2, mlp_ratio=4, qkv_bias=True, num_frames=4)
    elif kind != 'SwinTransformer':
        base |= dict(arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=128), out_type='raw')
    backbone = MODELS.build(dict(type=f'mmpetl.{kind}', **{**base, **more}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            parameter.copy_((parameter.ndim == 1 and name.endswith('weight')) +
                            0.2 * torch.randn(parameter.shape, generator=generator))
    backbone.train(False)
    return backbone


def split(backbone):
    """Base, adapter tensors, methods: what a merged file and an adapter file would hold."""
    state = backbone.state_dict()
    trunk = {key: value for key, value in state.items() if not key.startswith('petl.')}
    return trunk, {f'backbone.{key}': value for key, value in state.items() if key.startswith('petl.')}


def opened(peer, state, config, folder):
    peft = pytest.importorskip('peft', reason='peer peft is not installed')
    write_peft(folder, state, config)
    model = peft.PeftModel.from_pretrained(peer, folder)
    loaded = {key for key in model.state_dict() if 'lora_' in key}
    assert len(loaded) == len(state), 'peft made or missed factors'
    model.train(False)
    return model


def difference(a, b):
    assert a.shape == b.shape and b.abs().max() > 0.1
    return float((a - b).detach().abs().max())


LORAS = [
    dict(rank=2, ops='qv'),
    dict(rank=3, ops=['q', 'k', 'v', 'proj', 'fc1', 'fc2'], alpha=6),
    dict(rank=[2, 4], ops='kv', alpha=8),
    dict(rank=2, ops=['k', 'fc2'], layers=[1])
]


@pytest.mark.parametrize('lora', LORAS)
def test_timm(image, tmp_path, lora):
    pytest.importorskip('timm', reason='peer timm is not installed')
    from timm.models.vision_transformer import VisionTransformer
    backbone = adapted('VisionTransformer', lora)
    trunk, adapter = split(backbone)
    peer = VisionTransformer(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=0)
    peer.load_state_dict(export_names(trunk, 'vit', 'timm'), strict=True)
    x = image(2, 3, 16, 16)
    with torch.no_grad():
        plain = peer.train(False).forward_features(x)
        state, config = lora_to_peft(adapter, [dict(type='LoRA', **lora)], 'vit', 'timm', base='a-base')
        got = opened(peer, state, config, tmp_path).base_model.model.forward_features(x)
        assert difference(got, backbone(x)[0]) < TOL
    assert difference(got, plain) > 1e-2, 'the adapter must matter'


def test_stock_mmpretrain(image, tmp_path):
    from mmpretrain.models import VisionTransformer
    backbone = adapted('VisionTransformer', LORAS[1])
    trunk, adapter = split(backbone)
    peer = VisionTransformer(
        arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=128),
        img_size=16,
        patch_size=4,
        out_type='raw')
    peer.load_state_dict(trunk, strict=True)
    state, config = lora_to_peft(adapter, [dict(type='mmpetl.LoRA', **LORAS[1])], 'vit', 'mmpretrain')
    peft = pytest.importorskip('peft', reason='peer peft is not installed')
    write_peft(tmp_path, state, config)
    model = peft.PeftModel.from_pretrained(peer, tmp_path)
    peer.train(False)
    x = image(2, 3, 16, 16)
    with torch.no_grad():
        assert difference(model(x)[0], backbone(x)[0]) < TOL


@pytest.mark.parametrize('lora', LORAS[:3])
@pytest.mark.parametrize('arch', ['vit', 'dinov2', 'clip', 'videomae'])
def test_transformers(image, tmp_path, arch, lora):
    transformers = pytest.importorskip('transformers', reason='peer transformers is not installed')
    if int(transformers.__version__.split('.')[0]) < 5:
        pytest.skip("the module names of 'hf' are those of transformers 5")
    kind = dict(clip='CLIPVisionTransformer', videomae='VideoMAE').get(arch, 'VisionTransformer')
    more = dict(dinov2=dict(layer_scale_init_value=1.), clip=dict(out_type='cls_token')).get(arch, {})
    backbone = adapted(kind, lora, **more)
    trunk, adapter = split(backbone)
    if arch == 'clip':
        trunk['proj'] = image(32, 24, seed=5)
    family = 'vit' if arch == 'dinov2' else arch
    extra = dict(image_size=16, num_frames=4) if arch == 'videomae' else {}
    config = hf_config(trunk, family, 2, 1e-5 if arch == 'clip' else 1e-6, **extra)
    name, prefix = dict(vit=('ViTForImageClassification', 'vit.'), dinov2=('Dinov2Model', ''),
                        clip=('CLIPVisionModelWithProjection', 'vision_model.'),
                        videomae=('VideoMAEForVideoClassification', 'videomae.'))[arch]
    from safetensors.torch import save_file
    save_file(export_names(trunk, family, 'hf'), tmp_path / 'model.safetensors', {'format': 'pt'})
    import json
    (tmp_path / 'config.json').write_text(json.dumps({**config, 'num_labels': 3}))
    peer = getattr(transformers, name).from_pretrained(tmp_path)
    state, peft_config = lora_to_peft(adapter, [dict(type='LoRA', **lora)], arch, 'hf', prefix)
    model = opened(peer, state, peft_config, tmp_path / 'adapter').base_model.model
    x = image(2, 3, 16, 16) if arch != 'videomae' else image(2, 3, 4, 16, 16)
    with torch.no_grad():
        want = backbone(x)
        if arch == 'videomae':
            model.fc_norm.eps = 1e-6  # transformers takes 1e-5 whatever the config says
            got = model.fc_norm(model.videomae(x.transpose(1, 2)).last_hidden_state.mean(1))
        elif arch == 'clip':
            got, want = model(pixel_values=x).image_embeds, want[0] @ trunk['proj']
        else:
            got, want = getattr(model, 'vit', model)(x).last_hidden_state, want[0]
    assert difference(got, want) < TOL


SWIN = dict(embed_dims=16, depths=[1, 2], num_heads=[2, 4])


def swin_peer(library):
    """A Swin of another library: (base, keyword of its input, output -> (B, N, C) or (B, C))."""
    if library == 'mmpretrain':
        from mmpretrain.models import SwinTransformer
        return SwinTransformer(arch=SWIN, img_size=32, window_size=4, out_indices=(1, )), None, lambda y: y[0]
    if library == 'timm':
        from timm.models.swin_transformer import SwinTransformer
        return SwinTransformer(
            img_size=32, window_size=4, embed_dim=16, depths=(1, 2), num_heads=(2, 4), num_classes=0, global_pool=''
        ), None, lambda y: y.permute(0, 3, 1, 2)
    from transformers import SwinConfig, SwinModel
    config = SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 2], num_heads=[2, 4], window_size=4)
    return SwinModel(config, add_pooling_layer=False), 'pixel_values', lambda y: y.last_hidden_state.transpose(
        1, 2).unflatten(2, (4, 4))


@pytest.mark.parametrize('lora', LORAS[:2])
@pytest.mark.parametrize('library', ['mmpretrain', 'timm', 'hf'])
def test_swin(image, tmp_path, library, lora):
    """A block's number among all becomes its stage and its number there."""
    pytest.importorskip(dict(hf='transformers').get(library, library))
    backbone = adapted('SwinTransformer', lora, arch=SWIN, img_size=32, patch_size=4, window_size=4, out_indices=(1, ))
    trunk, adapter = split(backbone)
    peer, keyword, feature = swin_peer(library)
    if library == 'hf':
        from safetensors.torch import save_file
        save_file(export_names(trunk, 'swin', 'hf'), tmp_path / 'model.safetensors', {'format': 'pt'})
        peer.config.save_pretrained(tmp_path)
        peer = type(peer).from_pretrained(tmp_path, add_pooling_layer=False)
    else:
        peer.load_state_dict(trunk if library == 'mmpretrain' else export_names(trunk, 'swin', library), strict=False)
    state, config = lora_to_peft(adapter, [dict(type='LoRA', **lora)], 'swin', library, depths=SWIN['depths'])
    x = image(2, 3, 32, 32)
    peer.train(False)  # mmpretrain's returns nothing
    with torch.no_grad():
        want, plain = backbone(x)[0], feature(peer(**{keyword: x} if keyword else {'x': x}))
        model = opened(peer, state, config, tmp_path / 'adapter').base_model.model
        got = feature(model(**{keyword: x} if keyword else {'x': x}))
    assert difference(got, want) < TOL and difference(plain, want) > 1e-2


@pytest.mark.parametrize('lora', LORAS[:2])
def test_stock_video_swin(image, tmp_path, lora):
    from mmaction.models.backbones.swin import SwinTransformer3D
    size = dict(arch=SWIN, window_size=(2, 4, 4), out_indices=(1, ), drop_path_rate=0.)
    from mmengine.registry import init_default_scope
    init_default_scope('mmaction')
    torch.manual_seed(0)
    backbone = MODELS.build(dict(type='mmpetl.SwinTransformer3D', petl=[dict(type='LoRA', **lora)], **size))
    with torch.no_grad():
        for parameter in backbone.petl.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    trunk, adapter = split(backbone)
    peer = SwinTransformer3D(pretrained2d=False, **size)
    peer.load_state_dict(trunk, strict=True)
    state, config = lora_to_peft(adapter, [dict(type='LoRA', **lora)], 'video_swin', 'mmaction2', depths=SWIN['depths'])
    x = image(1, 3, 4, 32, 32)
    peer.eval(), backbone.eval()
    with torch.no_grad():
        want, plain = backbone(x), peer(x)
        model = opened(peer, state, config, tmp_path)
        model.base_model.model.eval()
        assert difference(model.base_model.model(x), want) < TOL and difference(plain, want) > 1e-2


def test_refusals():
    factors = {f'backbone.petl.lora.blocks.0.q.{name}': torch.ones(2, 2) for name in ('down', 'up')}
    lora = [dict(type='LoRA', rank=2)]
    with pytest.raises(ValueError, match='would have no effect'):
        lora_to_peft(factors, lora, 'videomae', 'mmaction2')
    with pytest.raises(ValueError, match="no peft export for 'video_swin' of 'timm'"):
        lora_to_peft(factors, lora, 'video_swin', 'timm')
    for depths in (None, []):
        with pytest.raises(ValueError, match='give the number of blocks of each stage'):
            lora_to_peft(factors, lora, 'swin', 'timm', depths=depths)
    with pytest.raises(ValueError, match='this adapter holds LoRA, VPT'):
        lora_to_peft(factors, [*lora, dict(type='VPT')], 'vit', 'timm')
    with pytest.raises(ValueError, match='not a factor of LoRA'):
        lora_to_peft({**factors, 'backbone.petl.vpt.prompts': torch.ones(1)}, lora, 'vit', 'timm')
    with pytest.raises(ValueError, match='no factor of LoRA'):
        lora_to_peft({'head.weight': torch.ones(1)}, lora, 'vit', 'timm')
    with pytest.raises(ValueError, match='differs between blocks'):
        lora_to_peft(factors, [dict(type='LoRA', rank=2, alpha=[1, 2])], 'vit', 'timm')
