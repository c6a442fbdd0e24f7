# SPDX-License-Identifier: Apache-2.0
"""Published files through MMEngine's own ways in: load_checkpoint, init_cfg, on backbones with adapters."""

import logging

import numpy as np
import pytest
import torch
from mmengine.runner import load_checkpoint

from mmpetl.registry import MODELS

VIT = dict(
    type='mmpetl.VisionTransformer',
    arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=128),
    img_size=16,
    patch_size=4,
    out_type='raw',
    petl=[dict(type='LoRA', rank=2)])
SWIN = dict(
    type='mmpetl.SwinTransformer',
    arch=dict(embed_dims=16, depths=[1, 1], num_heads=[1, 2]),
    img_size=32,
    window_size=4,
    out_indices=(1, ),
    petl=[dict(type='LoRA', rank=2)])


@pytest.fixture(autouse=True)
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def build(cfg, **more):
    from mmengine.registry import init_default_scope
    init_default_scope('mmpretrain')
    return MODELS.build({**cfg, **more})


def timm_names(state):
    """Stock ViT state under timm's names."""
    names = [('.ffn.layers.0.0.', '.mlp.fc1.'), ('.ffn.layers.1.', '.mlp.fc2.'), ('layers.', 'blocks.'),
             ('.ln1.', '.norm1.'), ('.ln2.', '.norm2.'), ('patch_embed.projection', 'patch_embed.proj')]
    renamed = {}
    for key, value in state.items():
        for old, new in names:
            key = key.replace(old, new)
        renamed[key.replace('ln1.', 'norm.')] = value
    return renamed


def trunk(backbone):
    return {key: value for key, value in backbone.state_dict().items() if not key.startswith('petl.')}


@pytest.mark.parametrize('way', ['load_checkpoint', 'init_cfg', 'init_cfg with prefix'])
def test_published_names(randomise, image, tmp_path, way):
    source = randomise(build(VIT, petl=[]))
    path = tmp_path / 'published.pth'
    prefix = 'encoder.' if 'prefix' in way else ''
    torch.save({'model': {prefix + key: value for key, value in timm_names(trunk(source)).items()}}, path)
    if way == 'load_checkpoint':
        target = build(VIT)
        load_checkpoint(target, str(path))
    else:
        init = dict(type='Pretrained', checkpoint=str(path), **(dict(prefix=prefix) if prefix else {}))
        target = build(VIT, init_cfg=init)
        target.init_weights()
    target.train(False)
    x = image(2, 3, 16, 16)
    assert torch.equal(target(x)[0], source(x)[0])


def test_a_foreign_file_is_an_error_not_a_silence(tmp_path):
    torch.save({'state_dict': {
        'conv1.weight': torch.zeros(3),
        'layer1.0.bn1.weight': torch.zeros(3)
    }}, tmp_path / 'resnet.pth')
    with pytest.raises(ValueError, match='no known weight format') as error:
        load_checkpoint(build(VIT), str(tmp_path / 'resnet.pth'))
    assert '\n' not in str(error.value)


def test_npz_through_init_cfg(tmp_path, randomise):
    rng = np.random.default_rng(0)
    source = randomise(build(VIT, petl=[]))
    np.savez(tmp_path / 'odd.npz', **{'embedding/kernel': rng.standard_normal((4, 4, 3, 32)).astype(np.float32)})
    with pytest.raises(ValueError, match='jax-vit weights do not fit .* keys missing'):
        load_checkpoint(source, str(tmp_path / 'odd.npz'))


def test_other_size_and_oblong_grid(randomise, tmp_path):
    source = randomise(build(VIT, petl=[]))
    torch.save(timm_names(trunk(source)), tmp_path / 'w.pth')
    from mmpretrain.models.utils import resize_pos_embed
    for size, grid in ((24, (6, 6)), ((16, 32), (4, 8))):
        target = build(VIT, img_size=size)
        load_checkpoint(target, str(tmp_path / 'w.pth'))
        assert torch.allclose(
            target.pos_embed, resize_pos_embed(source.pos_embed, (4, 4), grid, 'bicubic', 1), atol=1e-6)


def test_swin_with_another_window(randomise, image, tmp_path):
    """Upstream's own resizing of bias tables calls a function that SciPy no longer has; ours must come before it."""
    source = randomise(build(SWIN, petl=[]))
    torch.save({f'backbone.{key}': value for key, value in trunk(source).items()}, tmp_path / 'w.pth')
    target = build(SWIN, window_size=2)
    from mmpetl.weights.resize import resize_bias
    load_checkpoint(target, str(tmp_path / 'w.pth'), revise_keys=[(r'^backbone\.', '')])
    old, new = (model.stages[0].blocks[0].attn.w_msa for model in (source, target))
    assert torch.equal(new.relative_position_bias_table, resize_bias(old.relative_position_bias_table, (4, 4), (2, 2)))
    target.train(False)
    assert target(image(1, 3, 32, 32))[0].isfinite().all()
