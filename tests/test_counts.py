# SPDX-License-Identifier: Apache-2.0
"""Trainable parameters at published sizes, on the meta device, against published and derived numbers."""

import re
from pathlib import Path

import pytest
from cases import BACKBONE, METHODS, ROW, real_size

import mmpetl
from mmpetl.registry import MODELS

#: What cards say by a formula alone.
BY_FORMULA = {('APT', 'videomae'), ('APT', 'vit'), ('Adapter', 'video_swin'), ('Adapter', 'vit'), ('DiffFit', 'swin'),
              ('E2VPT', 'swin'), ('E2VPT', 'vit'), ('LoRA', 'video_swin'), ('VPT', 'swin'), ('VPT', 'vit'), ('rsLoRA', 'vit')}
CARDS = Path(__file__).resolve().parents[1] / 'docs' / 'methods'
COUNTS = [(case, ROW[name], number) for case in METHODS for name, number in case.counts.items()]


def _build(backbone, **options):
    with real_size():
        return MODELS.build({'type': backbone.type, **backbone.real, **options})


@pytest.mark.parametrize('case, backbone, expected', COUNTS, ids=[f'{c.name}-{b.name}' for c, b, _ in COUNTS])
def test_methods(case, backbone, expected):
    assert mmpetl.summary(_build(backbone, petl=case.real)).without_head == expected


def test_cards_state_these_numbers():
    unstated = set()
    for case, backbone, number in COUNTS:
        card = (CARDS / f'{case.real[0]["type"].lower()}.md').read_text(encoding='utf-8')
        if f'{number:,}' not in re.findall(r'[\d,]*\d', card[card.index('**Trained parameters'):]):
            unstated.add((case.name, backbone.name))
    assert unstated == BY_FORMULA


@pytest.mark.parametrize('name, tune, expected', [
    ('video_swin', ['*bias*'], 1_090_376),
    ('video_swin', ['*.bias'], 137_216),
    ('video_swin', ['*'], 87_638_984),
    ('video_swin', [], 0),
    ('vit', ['*bias'], 102_912),
    ('vit', ['*ln*'], 38_400),
    ('vit', ['*bias', '*ln*'], 122_112),  # DiffFit's
    ('vit', ['*'], 85_798_656),
    ('vit', ['layers.1[01].*', 'ln1.*'], 2 * 7_087_872 + 1_536),
    ('clip', ['*'], 85_799_424),
    ('swin', ['*'], 86_743_224),
])
def test_tune_patterns(name, tune, expected):
    assert mmpetl.summary(_build(BACKBONE[name], tune=tune)).without_head == expected


def test_unknown_tune_pattern_is_refused():
    with pytest.raises(ValueError, match='matches no parameter'):
        _build(BACKBONE['vit'], tune=['layer.0.*'])
