# SPDX-License-Identifier: Apache-2.0
"""Image transformers of other libraries -> mmpretrain's ViT: same outputs."""

import numpy as np
import pytest
import torch

from mmpetl.weights import convert, detect, load_file

ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=128)
TOL = 1e-5


def stock(**kwargs):
    from mmpretrain.models import VisionTransformer
    return VisionTransformer(**{**dict(arch=ARCH, img_size=16, patch_size=4, out_type='raw'), **kwargs})


def timm_vit(**kwargs):
    pytest.importorskip('timm', reason='peer timm is not installed')
    from timm.models.vision_transformer import VisionTransformer
    return VisionTransformer(**{
        **dict(img_size=16, patch_size=4, embed_dim=32, depth=2, num_heads=2, num_classes=5),
        **kwargs
    })


def difference(a, b):
    assert a.shape == b.shape and b.abs().max() > 0.1
    return float((a - b).detach().abs().max())


@pytest.mark.peers
@pytest.mark.parametrize('prefix', ['', 'module.', 'model.', 'backbone.'])
def test_timm(randomise, image, fill, prefix):
    peer = randomise(timm_vit())
    state = {prefix + key: value for key, value in peer.state_dict().items()}
    assert detect(state) == 'timm-vit'
    mine, report = fill(stock(), state, 'vit')
    x = image(2, 3, 16, 16)
    assert difference(mine(x)[0], peer.forward_features(x)) < TOL
    assert len(report.loaded) == len(mine.state_dict())
    assert torch.equal(report.extras['head.weight'], peer.head.weight)


@pytest.mark.peers
def test_timm_layer_scale_is_mapped_or_folded(randomise, image, fill):
    peer = randomise(timm_vit(init_values=1e-5))
    x = image(2, 3, 16, 16)
    kept, _ = fill(stock(layer_scale_init_value=1e-5), peer.state_dict(), 'vit')
    assert difference(kept(x)[0], peer.forward_features(x)) < TOL
    folded, report = fill(stock(), peer.state_dict(), 'vit')
    assert difference(folded(x)[0], peer.forward_features(x)) < TOL
    assert sum('layer scale' in reason for reason in report.left_out.values()) == 4


@pytest.mark.peers
def test_layer_scale_wanted_but_absent_is_refused(randomise):
    shapes = {key: tuple(value.shape) for key, value in stock(layer_scale_init_value=1e-5).state_dict().items()}
    with pytest.raises(ValueError, match=r'gamma1.*layer_scale_init_value=0') as error:
        convert(randomise(timm_vit()).state_dict(), shapes, 'vit')
    assert '\n' not in str(error.value)


@pytest.mark.peers
def test_timm_average_pooling(randomise, image, fill):
    peer = randomise(timm_vit(global_pool='avg', fc_norm=True))
    mine, report = fill(stock(out_type='avg_featmap', final_norm=False), peer.state_dict(), 'vit')
    x = image(2, 3, 16, 16)
    assert difference(mine(x)[0], peer.forward_head(peer.forward_features(x), pre_logits=True)) < TOL
    assert 'ln2.weight' in report.loaded


@pytest.mark.peers
def test_timm_clip_tower(randomise, image, fill):
    peer = randomise(timm_vit(pre_norm=True))
    mine, _ = fill(stock(pre_norm=True), peer.state_dict(), 'clip')
    x = image(2, 3, 16, 16)
    assert difference(mine(x)[0], peer.forward_features(x)) < TOL


@pytest.mark.peers
def test_pre_norm_in_the_file_alone_is_refused(randomise):
    shapes = {key: tuple(value.shape) for key, value in stock().state_dict().items()}
    with pytest.raises(ValueError, match='pre_norm'):
        convert(randomise(timm_vit(pre_norm=True)).state_dict(), shapes, 'vit')


@pytest.mark.peers
def test_other_input_size_equals_both_libraries_own_resizing(randomise, image, fill):
    """mmpretrain resizes inside its own loader: the same table must come out; so must timm's without antialiasing."""
    peer = randomise(timm_vit())
    mine, report = fill(stock(img_size=24), peer.state_dict(), 'vit')
    from mmpretrain.models.utils import resize_pos_embed
    want = resize_pos_embed(peer.pos_embed, (4, 4), (6, 6), 'bicubic', 1)
    assert difference(mine.pos_embed, want) < 1e-6
    from timm.layers import resample_abs_pos_embed
    assert difference(mine.pos_embed,
                      resample_abs_pos_embed(peer.pos_embed, [6, 6], num_prefix_tokens=1, antialias=False)) < TOL
    assert report.reshaped == [('pos_embed', (1, 17, 32), (1, 37, 32), 'grid resized, bicubic')]
    assert 'pos_embed (1, 17, 32) -> (1, 37, 32)' in str(report)


@pytest.mark.peers
def test_oblong_grid_needs_to_be_said(randomise, fill):
    peer = randomise(timm_vit())
    with pytest.raises(ValueError, match=r'pos_embed.*grid=\(H, W\)'):
        fill(stock(img_size=(16, 32)), peer.state_dict(), 'vit')
    mine, _ = fill(stock(img_size=(16, 32)), peer.state_dict(), 'vit', grid=(4, 8))
    from mmpretrain.models.utils import resize_pos_embed
    assert difference(mine.pos_embed, resize_pos_embed(peer.pos_embed, (4, 4), (4, 8), 'bicubic', 1)) < 1e-6


@pytest.mark.peers
def test_mae_pretraining_file(randomise, image, fill):
    """MAE: names of timm, no norm after pooling, a decoder in the full file."""
    peer = randomise(timm_vit())
    state = {key: value for key, value in peer.state_dict().items() if not key.startswith('head')}
    state |= {
        'mask_token': torch.zeros(1, 1, 8),
        'decoder_embed.weight': torch.zeros(8, 32),
        'decoder_pos_embed': torch.zeros(1, 17, 8),
        'decoder_blocks.0.norm1.weight': torch.ones(8)
    }
    mine, report = fill(stock(out_type='avg_featmap', final_norm=False), state, 'vit')
    with torch.no_grad():
        mine.ln2.weight.fill_(1), mine.ln2.bias.zero_()
    x = image(2, 3, 16, 16)
    tokens = peer.pos_drop(peer._pos_embed(peer.patch_embed(x)))
    pooled = peer.blocks(tokens)[:, 1:].mean(1)
    assert difference(mine(x)[0], torch.nn.functional.layer_norm(pooled, (32,), eps=1e-6)) < TOL
    assert sorted(report.initial) == ['ln2.bias', 'ln2.weight']
    assert 'final_norm=False' in report.left_out['ln1.weight']
    assert 'decoder' in report.left_out['decoder_embed.weight']


@pytest.mark.peers
@pytest.mark.parametrize('kind', ['linear', 'pretraining'])
def test_mocov3(randomise, image, fill, kind):
    peer = randomise(timm_vit())
    trunk = {key: value for key, value in peer.state_dict().items() if not key.startswith('head')}
    if kind == 'linear':
        state = {f'module.{key}': value for key, value in peer.state_dict().items()}
    else:
        state = {f'module.base_encoder.{key}': value for key, value in trunk.items()}
        state |= {f'module.momentum_encoder.{key}': value + 1 for key, value in trunk.items()}
        state |= {
            'module.base_encoder.head.0.weight': torch.zeros(4, 32),
            'module.predictor.0.weight': torch.zeros(4, 4)
        }
    mine, _ = fill(stock(), state, 'vit')
    x = image(2, 3, 16, 16)
    assert difference(mine(x)[0], peer.forward_features(x)) < TOL


def jax_arrays(prefix, head=True, pre_logits=True):
    """Arrays of a random model in the layout of the published ViT-B_16.npz."""
    rng = np.random.default_rng(0)
    shapes = {
        'cls': (1, 1, 32),
        'embedding/kernel': (4, 4, 3, 32),
        'embedding/bias': (32, ),
        'Transformer/encoder_norm/scale': (32, ),
        'Transformer/encoder_norm/bias': (32, ),
        'Transformer/posembed_input/pos_embedding': (1, 17, 32)
    }
    for i in range(2):
        block = f'Transformer/encoderblock_{i}'
        attention = f'{block}/MultiHeadDotProductAttention_1'
        for name in ('query', 'key', 'value'):
            shapes |= {f'{attention}/{name}/kernel': (32, 2, 16), f'{attention}/{name}/bias': (2, 16)}
        shapes |= {f'{attention}/out/kernel': (2, 16, 32), f'{attention}/out/bias': (32,)}
        shapes |= {
            f'{block}/{norm}/{part}': (32, )
            for norm in ('LayerNorm_0', 'LayerNorm_2')
            for part in ('scale', 'bias')
        }
        shapes |= {f'{block}/MlpBlock_3/Dense_0/kernel': (32, 128), f'{block}/MlpBlock_3/Dense_0/bias': (128,),
                   f'{block}/MlpBlock_3/Dense_1/kernel': (128, 32), f'{block}/MlpBlock_3/Dense_1/bias': (32,)}
    if head:
        shapes |= {'head/kernel': (32, 5), 'head/bias': (5,)}
    if pre_logits:
        shapes |= {'pre_logits/kernel': (32, 32), 'pre_logits/bias': (32,)}
    return {prefix + key: (0.2 * rng.standard_normal(shape)).astype(np.float32) for key, shape in shapes.items()}


@pytest.mark.peers
@pytest.mark.parametrize('prefix, pre_logits', [('', True), ('opt/target/', True), ('', False)])
def test_jax_npz_equals_timms_loader(tmp_path, image, fill, prefix, pre_logits):
    path = tmp_path / 'ViT-B_16.npz'
    np.savez(path, **jax_arrays(prefix, pre_logits=pre_logits))
    peer = timm_vit()
    peer.load_pretrained(str(path), prefix=prefix)
    peer.train(False)
    state = load_file(path)['state_dict']
    assert detect(state) == 'jax-vit'
    mine, report = fill(stock(), state, 'vit')
    x = image(2, 3, 16, 16)
    assert difference(mine(x)[0], peer.forward_features(x)) < TOL
    assert torch.equal(report.extras['head.weight'], peer.head.weight)
    assert ('pre_logits.weight' in report.extras) == pre_logits


def hf(name, config, **kwargs):
    transformers = pytest.importorskip('transformers', reason='peer transformers is not installed')
    base = dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=16,
        patch_size=4,
        layer_norm_eps=1e-6)
    return getattr(transformers, name)(getattr(transformers, config)(**{**base, **kwargs}))


def saved(model, folder):
    """State dict as transformers writes it, whose names differ from those in memory since its version 5."""
    model.save_pretrained(folder)
    return load_file(folder / 'model.safetensors')['state_dict']


@pytest.mark.peers
@pytest.mark.parametrize('name, config, scale', [('ViTForImageClassification', 'ViTConfig', 0),
                                                 ('ViTModel', 'ViTConfig', 0), ('Dinov2Model', 'Dinov2Config', 1.)])
def test_hugging_face(randomise, image, fill, tmp_path, name, config, scale):
    peer = randomise(hf(name, config))
    x = image(2, 3, 16, 16)
    trunk = getattr(peer, 'vit', peer)
    for state in (peer.state_dict(), saved(peer, tmp_path)):
        assert detect(state) == 'hf-vit'
        mine, _ = fill(stock(layer_scale_init_value=scale), state, 'vit')
        assert difference(mine(x)[0], trunk(x).last_hidden_state) < TOL


@pytest.mark.peers
def test_hugging_face_mae(randomise, image, fill):
    peer = randomise(hf('ViTMAEForPreTraining', 'ViTMAEConfig', decoder_hidden_size=8, decoder_num_hidden_layers=1,
                        decoder_num_attention_heads=1, decoder_intermediate_size=8, mask_ratio=0.))
    mine, _ = fill(stock(), peer.state_dict(), 'vit')
    x = image(2, 3, 16, 16)
    noise = torch.arange(16.)[None].repeat(2, 1)  # keeps the patches in their order
    assert difference(mine(x)[0], peer.vit(x, noise=noise).last_hidden_state) < TOL


def with_registers(mine, registers):
    """Run a stock ViT with register tokens between class token and patches, as a frozen shallow prompt does."""
    def insert(_, inputs):
        tokens = inputs[0]
        return torch.cat([tokens[:, :1], registers.expand(len(tokens), -1, -1), tokens[:, 1:]], 1), *inputs[1:]
    handle = mine.layers[0].register_forward_pre_hook(insert)
    return handle


@pytest.mark.peers
@pytest.mark.parametrize('peer_name', ['timm', 'timm without a class position', 'transformers'])
def test_dinov2_registers_are_given_out_on_request_and_refused_otherwise(randomise, image, fill, peer_name):
    x = image(2, 3, 16, 16)
    if peer_name == 'transformers':
        peer, name = randomise(hf('Dinov2WithRegistersModel', 'Dinov2WithRegistersConfig')), 'hf-dinov2-registers'
        want = peer(x).last_hidden_state
    else:
        peer = randomise(timm_vit(init_values=1., reg_tokens=4, no_embed_class=peer_name != 'timm'))
        name, want = 'dinov2-registers', None
    state = peer.state_dict()
    shapes = {key: tuple(value.shape) for key, value in stock(layer_scale_init_value=1.).state_dict().items()}
    with pytest.raises(ValueError, match='4 register tokens.*--as dinov2-registers'):
        convert(state, shapes, 'vit')
    if peer_name == 'timm':  # timm adds positions to the registers as well; the published model does not
        with pytest.raises(ValueError, match='pos_embed'):
            convert(state, shapes, 'vit', name)
        return
    mine, report = fill(stock(layer_scale_init_value=1.), state, 'vit', name)
    handle = with_registers(mine, report.extras['register_tokens'])
    want = peer.forward_features(x) if want is None else want
    assert difference(mine(x)[0], want) < TOL
    handle.remove()
    assert difference(mine(x)[0][:, 0], want[:, 0]) > 1e-3, 'registers must matter, else this test shows nothing'


@pytest.mark.peers
def test_split_projections(randomise, image, fill):
    """AdaptFormer's image models keep q, k and v apart and the feed-forward layers beside the attention."""
    peer = randomise(timm_vit())
    state = {}
    for key, value in peer.state_dict().items():
        if '.attn.qkv.' in key:
            state |= {key.replace('qkv', f'{letter}_proj'): part for letter, part in zip('qkv', value.chunk(3))}
        else:
            state[key.replace('.mlp.', '.')] = value
    state['blocks.0.adaptmlp.down_proj.weight'] = torch.zeros(4, 32)
    mine, report = fill(stock(), state, 'vit')
    x = image(2, 3, 16, 16)
    assert difference(mine(x)[0], peer.forward_features(x)) < TOL
    assert 'another implementation' in report.left_out['blocks.0.adaptmlp.down_proj.weight']


def test_stock_file_with_prefix_head_and_adapter(randomise, image, fill):
    source = randomise(stock())
    state = {f'backbone.{key}': value for key, value in source.state_dict().items()}
    state |= {'head.fc.weight': torch.zeros(5, 32), 'backbone.petl.0.down.weight': torch.zeros(3, 3)}
    assert detect(state) == 'mmpretrain-vit'
    mine, report = fill(stock(), state, 'vit')
    x = image(2, 3, 16, 16)
    assert torch.equal(mine(x)[0], source(x)[0])
    assert 'adapter' in report.left_out['petl.0.down.weight']


def test_target_without_class_token(randomise, fill):
    source = randomise(stock())
    mine, report = fill(stock(with_cls_token=False), source.state_dict(), 'vit')
    assert torch.equal(mine.pos_embed, source.pos_embed[:, 1:])
    assert 'no class token' in report.left_out['cls_token']


def test_half_precision_becomes_single(randomise, fill):
    source = randomise(stock())
    mine, _ = fill(stock(), {key: value.half() for key, value in source.state_dict().items()}, 'vit')
    assert mine.pos_embed.dtype == torch.float32
    assert difference(mine.pos_embed, source.pos_embed) < 1e-3


def test_petl_keys_of_the_target_are_not_trunk(randomise):
    state = randomise(stock()).state_dict()
    shapes = {**{key: tuple(value.shape) for key, value in state.items()}, 'petl.0.down.weight': (3, 3)}
    converted, report = convert(state, shapes, 'vit')
    assert not report.missing and set(converted) == set(state)
