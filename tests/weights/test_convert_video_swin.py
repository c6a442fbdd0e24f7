# SPDX-License-Identifier: Apache-2.0
"""Video Swin files -> mmaction2's SwinTransformer3D, and image Swin weights inflated in time."""

import pytest
import torch

from mmpetl.weights import convert, detect
from mmpetl.weights.resize import bias_window, relative_index, resize_bias

ARCH = dict(embed_dims=16, depths=[2, 2, 1], num_heads=[1, 2, 4])
TOL = 1e-5


def stock(window_size=(4, 4, 4), **kwargs):
    from mmaction.models.backbones.swin import SwinTransformer3D
    return SwinTransformer3D(arch=ARCH, window_size=window_size, out_indices=(2,), pretrained2d=False, **kwargs)


def image_swin(**kwargs):
    from mmpretrain.models import SwinTransformer
    return SwinTransformer(arch=ARCH, img_size=64, window_size=4, out_indices=(2,), **kwargs)


def difference(a, b):
    assert a.shape == b.shape and b.abs().max() > 0.1
    return float((a - b).detach().abs().max())


@pytest.mark.parametrize('kind', ['original', 'mmaction2', 'V-PETL'])
def test_original_mmaction2_and_vpetl(randomise, image, fill, kind):
    source = randomise(stock())
    state = source.state_dict()
    if kind != 'mmaction2':
        state = {
            key.replace('norm2.', 'norm.') if key.startswith('norm2.') else key: value
            for key, value in state.items()
        }
    if kind == 'V-PETL':
        state |= {'fc.0.weight': torch.ones(5, 64, 1, 1, 1), 'fc.0.bias': torch.ones(5)}
        state['layers.0.blocks.0.attn.qkv_adapter.0.weight'] = torch.ones(2)
    else:
        state = {f'backbone.{key}': value for key, value in state.items()}
        state |= {'cls_head.fc_cls.weight': torch.ones(5, 64), 'cls_head.fc_cls.bias': torch.ones(5)}
    assert detect(state) == 'video-swin'
    mine, report = fill(stock(), state, 'video_swin')
    x = image(1, 3, 8, 64, 64)
    assert torch.equal(mine(x), source(x))
    assert report.extras['head.weight'].shape == (5, 64)


def test_final_norm_is_not_forgotten(randomise, fill):
    """Upstream loads the original file without its last norm and says nothing."""
    source = randomise(stock())
    state = {key: value for key, value in source.state_dict().items() if not key.startswith('norm2.')}
    with pytest.raises(ValueError, match='2 keys missing .*norm2') as error:
        convert(state, {key: tuple(value.shape) for key, value in source.state_dict().items()}, 'video_swin')
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('frames', [2, 8, 16])
def test_inflated_image_model_equals_itself_on_a_still_clip(randomise, image, fill, frames):
    source = randomise(image_swin())
    frame = image(1, 3, 64, 64)
    want = source(frame)[0]
    mine, report = fill(stock(), source.state_dict(), 'video_swin')
    got = mine(frame[:, :, None].repeat(1, 1, frames, 1, 1))
    assert got.shape[2] == frames // 2
    assert difference(got, want[:, :, None].expand_as(got)) < 5 * TOL  # sums over frames in another order
    assert 'repeated over time, divided by its length' in str(report)


@pytest.mark.peers
def test_inflated_timm_model(randomise, image, fill):
    pytest.importorskip('timm', reason='peer timm is not installed')
    from timm.models.swin_transformer import SwinTransformer
    peer = randomise(
        SwinTransformer(img_size=64, patch_size=4, window_size=4, embed_dim=16, depths=(2, 2, 1), num_heads=(1, 2, 4)))
    mine, _ = fill(stock(), peer.state_dict(), 'video_swin')
    frame = image(1, 3, 64, 64)
    got = mine(frame[:, :, None].repeat(1, 1, 4, 1, 1))
    assert difference(got[:, :, 1].permute(0, 2, 3, 1), peer.forward_features(frame)) < 5 * TOL


@pytest.mark.parametrize('window', [(2, 4, 4), (8, 4, 4), (4, 7, 7)])
def test_other_window(randomise, image, fill, window):
    source = randomise(stock())
    mine, report = fill(stock(window), source.state_dict(), 'video_swin')
    assert len(report.reshaped) == 5
    old, new, fresh = (model.layers[0].blocks[0].attn for model in (source, mine, stock(window)))
    assert torch.equal(new.relative_position_bias_table, resize_bias(old.relative_position_bias_table, (4, 4, 4),
                                                                     window))
    assert torch.equal(new.relative_position_index, fresh.relative_position_index)
    assert mine(image(1, 3, 8, 64, 64)).isfinite().all()


def test_resized_table_keeps_what_it_must(image):
    """A constant stays; time is interpolated linearly; the centre, distance zero, stays where it is."""
    constant = torch.full((7 * 49, 3), 2.5)
    assert torch.allclose(resize_bias(constant, (4, 4, 4), (8, 7, 7)), torch.full((15 * 169, 3), 2.5))
    in_time = torch.arange(7.).repeat_interleave(49)[:, None]
    resized = resize_bias(in_time, (4, 4, 4), (2, 4, 4)).reshape(3, 49)
    assert torch.allclose(resized, torch.tensor([2 / 3, 3, 16 / 3])[:, None].expand(3, 49), atol=1e-5)
    symmetric = image(49, 1)
    symmetric = symmetric + symmetric.flip(0)
    wider = resize_bias(symmetric, (4, 4), (7, 7))
    assert torch.allclose(wider, wider.flip(0), atol=1e-5)


@pytest.mark.parametrize('window', [(7, 7), (4, 3, 3), (8, 7, 7)])
def test_window_and_index(window):
    index = relative_index(window)
    rows = 1
    for side in window:
        rows *= 2 * side - 1
    assert int(index.max()) + 1 == rows and int(index.min()) == 0
    assert bias_window(rows, len(index), dims=len(window)) == window
    with pytest.raises(ValueError, match='fits 0 window sizes'):
        bias_window(rows + 2, len(index), dims=len(window))


def test_index_equals_both_upstreams():
    mine = relative_index((4, 4))
    assert torch.equal(mine, image_swin().stages[0].blocks[0].attn.w_msa.relative_position_index)
    assert torch.equal(relative_index((4, 4, 4)), stock().layers[0].blocks[0].attn.relative_position_index)
