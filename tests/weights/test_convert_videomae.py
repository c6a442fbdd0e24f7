# SPDX-License-Identifier: Apache-2.0
"""VideoMAE files -> mmaction2's VisionTransformer, and image transformers inflated into it."""

import pytest
import torch

from mmpetl.weights import convert, detect, load_file
from mmpetl.weights.match_report import Report
from mmpetl.weights.resize import resize_volume, sinusoid
from mmpetl.weights.videomae import to_target

TOL = 1e-5


def stock(**kwargs):
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
                num_frames=4,
                tubelet_size=2),
            **kwargs
        })


def original_names(module, prefix='', pooled='fc_norm'):
    """A random mmaction2 model under the names of the VideoMAE repository, which stores no position table."""
    state = {}
    for key, value in module.state_dict().items():
        key = key.replace('patch_embed.projection', 'patch_embed.proj')
        key = key.replace('mlp.layers.0.0', 'mlp.fc1').replace('mlp.layers.1', 'mlp.fc2')
        if key != 'pos_embed':
            state[prefix + key.replace('fc_norm', pooled)] = value
    return state


def difference(a, b):
    assert a.shape == b.shape and b.abs().max() > 0.1
    return float((a - b).detach().abs().max())


@pytest.mark.parametrize('prefix, pooled', [('', 'fc_norm'), ('module.', 'head_norm'), ('backbone.', 'fc_norm')])
def test_fine_tuning_file(randomise, image, fill, prefix, pooled):
    source = randomise(stock())
    state = original_names(source, prefix, pooled) | {
        f'{prefix}head.weight': torch.ones(5, 32),
        f'{prefix}head.bias': torch.ones(5)
    }
    assert detect(state) == 'videomae'
    mine, report = fill(stock(), state, 'videomae')
    x = image(2, 3, 4, 16, 16)
    assert torch.equal(mine(x), source(x))
    assert list(report.generated) == ['pos_embed'] and report.extras['head.weight'].shape == (5, 32)


def test_pretraining_file(randomise, image, fill):
    source = randomise(stock())
    state = {key: value for key, value in original_names(source, 'encoder.').items() if 'fc_norm' not in key}
    state |= {
        'encoder.norm.weight': torch.full((32, ), 3.),
        'encoder.norm.bias': torch.zeros(32),
        'mask_token': torch.zeros(1, 1, 8),
        'encoder_to_decoder.weight': torch.zeros(8, 32),
        'decoder.blocks.0.norm1.weight': torch.ones(8)
    }
    assert detect(state) == 'videomae'
    mine, report = fill(stock(), state, 'videomae')
    assert sorted(report.initial) == ['fc_norm.bias', 'fc_norm.weight']
    assert 'norm.weight' in report.left_out and 'decoder.blocks.0.norm1.weight' in report.left_out
    with torch.no_grad():
        for norm in (mine.fc_norm, source.fc_norm):
            norm.weight.fill_(1), norm.bias.zero_()
    x = image(2, 3, 4, 16, 16)
    assert torch.equal(mine(x), source(x))


@pytest.mark.parametrize('letters', ['qkv', 'qv'])
def test_split_projections(randomise, image, fill, letters):
    """AdaptFormer's and V-PETL's converters write q_proj, k_proj, v_proj and put fc1, fc2 beside the attention."""
    source = randomise(stock())
    state = {}
    for key, value in original_names(source, 'encoder.').items():
        if key.endswith('attn.qkv.weight'):
            state |= {
                key.replace('qkv', f'{letter}_proj'): part
                for letter, part in zip('qkv', value.chunk(3)) if letter in letters
            }
        else:
            state[key.replace('.mlp.', '.')] = value
    if letters == 'qv':
        with pytest.raises(ValueError, match='lacks one of the query, key and value weights'):
            fill(stock(), state, 'videomae')
        return
    mine, _ = fill(stock(), state, 'videomae')
    x = image(2, 3, 4, 16, 16)
    assert torch.equal(mine(x), source(x))


@pytest.mark.peers
@pytest.mark.parametrize('name', ['VideoMAEForVideoClassification', 'VideoMAEForPreTraining'])
def test_hugging_face(randomise, image, fill, tmp_path, name):
    transformers = pytest.importorskip('transformers', reason='peer transformers is not installed')
    config = transformers.VideoMAEConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=16,
        patch_size=4,
        num_frames=4,
        layer_norm_eps=1e-6,
        decoder_hidden_size=8,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=1,
        decoder_intermediate_size=8)
    peer = randomise(getattr(transformers, name)(config))
    peer.save_pretrained(tmp_path)
    x = image(2, 3, 4, 16, 16)
    tokens = peer.videomae(x.transpose(1, 2)).last_hidden_state
    for state in (peer.state_dict(), load_file(tmp_path / 'model.safetensors')['state_dict']):
        assert detect(state) == 'hf-videomae'
        mine, report = fill(stock(), state, 'videomae')
        if name == 'VideoMAEForVideoClassification':
            logits = torch.nn.functional.linear(mine(x), report.extras['head.weight'], report.extras['head.bias'])
            assert difference(logits, peer(x.transpose(1, 2)).logits) < TOL
        mine.fc_norm, mine.return_feat_map = None, True
        assert difference(mine(x).flatten(2).transpose(1, 2), tokens) < TOL


def test_stock_file(randomise, image, fill):
    source = randomise(stock())
    state = {
        f'backbone.{key}': value
        for key, value in source.state_dict().items()
    } | {
        'cls_head.fc_cls.weight': torch.zeros(5, 32)
    }
    assert detect(state) == 'mmaction-videomae'
    mine, _ = fill(stock(), state, 'videomae')
    x = image(2, 3, 4, 16, 16)
    assert torch.equal(mine(x), source(x))


@pytest.mark.parametrize('given, wanted', [(dict(num_frames=4), dict(num_frames=8)),
                                           (dict(img_size=16), dict(img_size=24))])
def test_fixed_positions_are_rebuilt_for_other_clips(randomise, fill, given, wanted):
    source = randomise(stock(**given))
    target = stock(**wanted)
    want = target.pos_embed.clone()
    mine, report = fill(target, {f'backbone.{key}': value for key, value in source.state_dict().items()}, 'videomae')
    assert torch.equal(mine.pos_embed, want) or difference(mine.pos_embed, want) < 1e-6
    assert list(report.generated) == ['pos_embed']


@pytest.mark.parametrize('given', [True, False])
@pytest.mark.parametrize('grid', [(8, 14, 14), (8, 10, 10), (4, 14, 14), (4, 10, 10)])
def test_fixed_positions_are_resized_for_other_clips(given, grid):
    """A frozen base knows the table of 16 frames of 224 pixels: another size gets that one resized, be it in the file or
    not."""
    published = sinusoid(1568, 384)
    shapes = {'pos_embed': (1, grid[0] * grid[1] * grid[2], 384), 'patch_embed.projection.weight': (384, 3, 2, 16, 16)}
    state = {'patch_embed.projection.weight': torch.zeros(384, 3, 2, 16, 16), **({'pos_embed': published} if given else {})}
    report = Report('videomae', 'original')
    table = to_target(state, shapes, grid, report)['pos_embed']
    assert difference(table, resize_volume(published, (8, 14, 14), grid)) < 1e-6
    assert len(report.reshaped) == (grid != (8, 14, 14)) and len(report.generated) == (not given)


def test_sinusoid_equals_mmaction2s():
    from mmaction.models.backbones.vit_mae import get_sinusoid_encoding
    assert difference(sinusoid(1568, 384), get_sinusoid_encoding(1568, 384)) < 1e-6


@pytest.mark.parametrize('wanted, grid', [(dict(num_frames=8), (4, 4, 4)), (dict(img_size=24), (2, 6, 6))])
def test_learned_positions_are_resized(randomise, fill, wanted, grid):
    """A table linear in time stays linear between its frames; a table constant in space stays constant."""
    source = randomise(stock(use_learnable_pos_emb=True))
    with torch.no_grad():
        source.pos_embed.copy_(torch.tensor([1., 3.]).repeat_interleave(16)[None, :, None].expand(1, 32, 32))
    state = source.state_dict()
    with pytest.raises(ValueError, match=r'learned positions.*grid=\(T, H, W\)'):
        fill(stock(use_learnable_pos_emb=True, **wanted), state, 'videomae')
    mine, report = fill(stock(use_learnable_pos_emb=True, **wanted), state, 'videomae', grid=grid)
    frames = mine.pos_embed.reshape(grid[0], -1)
    assert float((frames - frames[:, :1]).detach().abs().max()) < 1e-5
    assert torch.allclose(
        frames[:, 0], torch.tensor([1., 3.]) if grid[0] == 2 else torch.tensor([1., 1.5, 2.5, 3.]), atol=1e-5)
    assert len(report.reshaped) == 1


def image_vit(**kwargs):
    from mmpretrain.models import VisionTransformer
    arch = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=128)
    return VisionTransformer(**{**dict(arch=arch, img_size=16, patch_size=4, out_type='raw'), **kwargs})


@pytest.mark.parametrize('scale', [0., 1.])
def test_inflated_image_model_equals_itself_on_a_still_clip(randomise, image, fill, scale):
    """With one time step and no class token, image and video model compute the same function."""
    source = randomise(image_vit(with_cls_token=False, layer_scale_init_value=scale, final_norm=False))
    frame = image(2, 3, 16, 16)
    want = source(frame)[0]
    mine, report = fill(stock(num_frames=2), source.state_dict(), 'videomae')
    mine.fc_norm, mine.return_feat_map = None, True
    still = frame[:, :, None].repeat(1, 1, 2, 1, 1)
    assert difference(mine(still).flatten(2).transpose(1, 2), want) < TOL
    assert any('keys' in key for key in report.left_out)


def test_inflated_positions_repeat_over_time_and_the_final_norm_moves(randomise, fill):
    source = randomise(image_vit())
    mine, report = fill(stock(num_frames=8), source.state_dict(), 'videomae')
    assert torch.equal(mine.pos_embed.reshape(4, 16, 32), source.pos_embed[:, 1:].expand(4, -1, -1))
    assert torch.equal(mine.fc_norm.weight, source.ln1.weight)
    assert 'class token dropped' in ' '.join(report.notes)
    kept, _ = fill(stock(init_values=1.), randomise(image_vit(layer_scale_init_value=1.)).state_dict(), 'videomae')
    assert torch.equal(kept.blocks[1].gamma_2,
                       randomise(image_vit(layer_scale_init_value=1.)).layers[1].ffn.gamma2.weight)


def test_clip_is_not_inflated(randomise, fill):
    with pytest.raises(ValueError, match='pre_norm.weight: CLIP normalises tokens before the first block') as error:
        fill(stock(), randomise(image_vit(pre_norm=True)).state_dict(), 'videomae')
    assert '\n' not in str(error.value)


def test_inflation_to_another_grid_needs_to_be_said(randomise, fill):
    state = randomise(image_vit()).state_dict()
    with pytest.raises(ValueError, match=r'grid=\(T, H, W\)'):
        fill(stock(img_size=24), state, 'videomae')
    mine, _ = fill(stock(img_size=24), state, 'videomae', grid=(2, 6, 6))
    assert mine.pos_embed.shape == (1, 72, 32)
    with pytest.raises(ValueError, match='give the shapes of the video backbone'):
        convert(state, None, 'videomae')
