# SPDX-License-Identifier: Apache-2.0
"""Which format a state dict has, and what is said when it has none."""

import pytest
import torch

from mmpetl.weights import Report, convert, detect
from mmpetl.weights.archs import ALIASES, FORMATS


def test_nearest_format_is_named():
    state = {
        f'blocks.{i}.attn.qkv.weight': torch.zeros(3, 1)
        for i in range(2)
    } | {
        'blocks.0.mlp.fc1.weight': torch.zeros(1)
    }
    with pytest.raises(ValueError, match="nearest is .*no key ends with 'patch_embed.proj.weight'") as error:
        detect(state)
    assert '\n' not in str(error.value)


def test_nothing_like_weights():
    with pytest.raises(ValueError, match='nothing in it looks like weights'):
        detect({'fooo': torch.zeros(1)})
    with pytest.raises(ValueError, match='no tensor among the entries'):
        convert({'model': {}}, None, 'vit')


def test_unknown_names_get_a_suggestion():
    with pytest.raises(ValueError, match='nearest: .*dinov2-registers'):
        convert({'a': torch.zeros(1)}, None, 'vit', 'dino-registers')
    with pytest.raises(ValueError, match="no architecture 'vitt'; known: vit"):
        convert({'a': torch.zeros(1)}, None, 'vitt')
    with pytest.raises(ValueError, match="not a jax-vit file: no key ends with 'embedding/kernel'"):
        convert({'a': torch.zeros(1)}, None, 'vit', 'npz')
    assert set(ALIASES.values()) <= set(FORMATS)


def tiny(**more):
    from mmpretrain.models import VisionTransformer
    arch = dict(embed_dims=8, num_layers=1, num_heads=2, feedforward_channels=16)
    return VisionTransformer(arch=arch, img_size=8, patch_size=4, **more).state_dict()


def test_missing_and_unexplained_keys_are_named_in_one_line():
    state = tiny()
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    short = {key: value for key, value in state.items() if key != 'layers.0.attn.proj.weight'}
    with pytest.raises(ValueError, match=r'1 keys missing \(layers.0.attn.proj.weight\)') as error:
        convert(short, shapes, 'vit')
    assert '\n' not in str(error.value)
    with pytest.raises(ValueError, match=r'1 keys unexplained \(mystery\)'):
        convert({**state, 'mystery': torch.zeros(1)}, shapes, 'vit')
    with pytest.raises(
            ValueError, match=r'ln1.weight: shape \(9,\) in the mmpretrain-vit file, \(8,\) in the backbone'):
        convert({**state, 'ln1.weight': torch.zeros(9)}, shapes, 'vit')


def test_without_a_target_the_shapes_of_the_file_stay():
    state = tiny()
    converted, report = convert({f'backbone.{key}': value for key, value in state.items()}, None, 'vit')
    assert set(converted) == set(state) and len(report.loaded) == len(state)


def test_report_is_a_short_table():
    report = Report(
        'timm-vit',
        'vit',
        loaded=['a'] * 150,
        missing=['b', 'c', 'd', 'e'],
        reshaped=[('p', (1, 2), (1, 3), 'bicubic')],
        left_out={f'head.{i}': 'classifier'
                  for i in range(5)},
        notes=['a remark'])
    lines = str(report).splitlines()
    assert lines[
        0] == 'timm-vit -> vit: 150 loaded, 1 reshaped, 0 generated, 0 initial, 4 missing, 5 left out, 0 unexpected'
    assert lines[1:] == [
        '  reshaped   p (1, 2) -> (1, 3): bicubic', '  left out   head.0, head.1, head.2 and 2 more: classifier',
        '  missing    b, c, d and 1 more', '  note       a remark'
    ]
