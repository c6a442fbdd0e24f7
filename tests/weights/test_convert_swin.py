# SPDX-License-Identifier: Apache-2.0
"""Image Swin transformers -> mmpretrain: same feature maps, in the order of their own patch merging."""

import pytest
import torch

from mmpetl.weights import convert, detect, load_file
from mmpetl.weights.swin import merge_order_from_mmpretrain, merge_order_to_mmpretrain

DEPTHS, HEADS = (2, 2, 1), (1, 2, 4)
TOL = 1e-5


def stock(window_size=4, img_size=64, **kwargs):
    from mmpretrain.models import SwinTransformer
    arch = dict(embed_dims=16, depths=list(DEPTHS), num_heads=list(HEADS))
    return SwinTransformer(arch=arch, img_size=img_size, window_size=window_size, out_indices=(2,), **kwargs)


def timm_swin(**kwargs):
    pytest.importorskip('timm', reason='peer timm is not installed')
    from timm.models.swin_transformer import SwinTransformer
    return SwinTransformer(
        **{
            **dict(
                img_size=64, patch_size=4, window_size=4, embed_dim=16, depths=DEPTHS, num_heads=HEADS, num_classes=5),
            **kwargs
        })


def original_names(peer):
    """timm's state under the names of the original repository, with the buffers that its files hold."""
    state = {}
    for key, value in peer.state_dict().items():
        if '.downsample.' in key:
            stage = int(key.split('.')[1])
            key = key.replace(f'layers.{stage}.', f'layers.{stage - 1}.')
        state[key.replace('head.fc.', 'head.')] = value
    for name, module in peer.named_modules():
        if hasattr(module, 'relative_position_index'):
            state[f'{name}.relative_position_index'] = module.relative_position_index
    state['layers.0.blocks.1.attn_mask'] = torch.zeros(16, 16, 16)
    return state


def difference(a, b):
    assert a.shape == b.shape and b.abs().max() > 0.1
    return float((a - b).detach().abs().max())


@pytest.mark.peers
@pytest.mark.parametrize('kind', ['swin', 'timm-swin'])
def test_original_and_timm(randomise, image, fill, kind):
    peer = randomise(timm_swin())
    state = peer.state_dict() if kind == 'timm-swin' else original_names(peer)
    assert detect(state) == kind
    mine, report = fill(stock(), state, 'swin')
    x = image(2, 3, 64, 64)
    assert difference(mine(x)[0].permute(0, 2, 3, 1), peer.forward_features(x)) < TOL
    assert torch.equal(report.extras['head.weight'], peer.head.fc.weight)
    assert bool(report.generated) == (kind == 'timm-swin')


@pytest.mark.peers
def test_patch_merging_order_matters(randomise, image, fill):
    peer = randomise(timm_swin())
    mine, _ = fill(stock(), original_names(peer), 'swin')
    with torch.no_grad():
        for stage in mine.stages[:-1]:
            stage.downsample.reduction.weight.copy_(merge_order_from_mmpretrain(stage.downsample.reduction.weight))
    x = image(2, 3, 64, 64)
    assert difference(mine(x)[0].permute(0, 2, 3, 1), peer.forward_features(x)) > 0.1


def test_patch_merging_order_is_a_bijection(image):
    weight = image(6, 12)
    assert not torch.equal(merge_order_to_mmpretrain(weight), weight)
    assert torch.equal(merge_order_from_mmpretrain(merge_order_to_mmpretrain(weight)), weight)
    assert torch.equal(merge_order_to_mmpretrain(weight[0]), merge_order_to_mmpretrain(weight)[0])


@pytest.mark.peers
def test_hugging_face(randomise, image, fill, tmp_path):
    transformers = pytest.importorskip('transformers', reason='peer transformers is not installed')
    config = transformers.SwinConfig(
        image_size=64, patch_size=4, embed_dim=16, depths=list(DEPTHS), num_heads=list(HEADS), window_size=4)
    peer = randomise(transformers.SwinForImageClassification(config))
    x = image(2, 3, 64, 64)
    want = peer.swin(x).last_hidden_state
    peer.save_pretrained(tmp_path)
    for state in (peer.state_dict(), load_file(tmp_path / 'model.safetensors')['state_dict']):
        assert detect(state) == 'hf-swin'
        mine, _ = fill(stock(), state, 'swin')
        assert difference(mine(x)[0].flatten(2).transpose(1, 2), want) < TOL


@pytest.mark.peers
def test_other_window_equals_timms_resizing(randomise, fill):
    peer = randomise(timm_swin())
    mine, report = fill(stock(window_size=6), peer.state_dict(), 'swin')
    from timm.layers import resize_rel_pos_bias_table_simple
    for i, stage in enumerate(mine.stages):
        for j, block in enumerate(stage.blocks):
            table = peer.layers[i].blocks[j].attn.relative_position_bias_table
            want = resize_rel_pos_bias_table_simple(table, (6, 6), (121, HEADS[i]))
            assert difference(block.attn.w_msa.relative_position_bias_table, want) < 1e-6
    assert len(report.reshaped) == sum(DEPTHS)
    assert 'window (4, 4) -> (6, 6)' in str(report)


def test_stock_and_old_stock_files(randomise, image, fill):
    source = randomise(stock())
    x = image(2, 3, 64, 64)
    state = {f'backbone.{key}': value for key, value in source.state_dict().items()}
    old = {key.replace('backbone.norm2.', 'backbone.norm.'): value for key, value in state.items()}
    old['backbone.stages.0.blocks.1.attn.attn_mask'] = torch.zeros(16, 16, 16)
    for given in (state, old):
        assert detect(given) == 'mmpretrain-swin'
        mine, _ = fill(stock(), given, 'swin')
        assert torch.equal(mine(x)[0], source(x)[0])


def test_absolute_positions_are_resized(randomise, fill):
    source = randomise(stock(use_abs_pos_embed=True))
    mine, report = fill(stock(use_abs_pos_embed=True, img_size=96), source.state_dict(), 'swin')
    assert mine.absolute_pos_embed.shape == (1, 576, 16)
    assert report.reshaped[0][0] == 'absolute_pos_embed'


@pytest.mark.peers
def test_not_into_other_architectures(randomise):
    for arch in ('vit', 'videomae'):
        with pytest.raises(ValueError, match=f'timm-swin weights do not fit .*{arch}.* which takes'):
            convert(randomise(timm_swin()).state_dict(), {'cls_token': (1, 1, 8)}, arch)
