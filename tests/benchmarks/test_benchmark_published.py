# SPDX-License-Identifier: Apache-2.0
"""benchmark_published.py against a stand-in for a checkout: a small prompted ViT written here, under the names that the
published one has."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'benchmarks'))
benchmark_published = importlib.import_module('benchmark_published')
benchmark_report = importlib.import_module('benchmark_report')

STAND_IN = """
from turtle import forward
import torch
import torch.nn.functional as F
from torch import nn
from ...utils import logging

logging.get_logger('stand-in')
LINEARS = dict(query=('attn', 32, 32), key=('attn', 32, 32), value=('attn', 32, 32), out=('attn', 32, 32),
               fc1=('ffn', 32, 64), fc2=('ffn', 64, 32))


def holder(**modules):
    found = nn.Module()
    for name, module in modules.items():
        setattr(found, name, module)
    return found


class PromptedVisionTransformer(nn.Module):
    def __init__(self, config, kind, img_size, num_classes):
        super().__init__()
        print('built', kind)
        groups = dict(attn={}, ffn={})
        layers = nn.ModuleList()
        for _ in range(2):
            parts = {group: holder(**{n: nn.Linear(a, b) for n, (g, a, b) in LINEARS.items() if g == group}) for group in groups}
            layers.append(holder(attention_norm=nn.LayerNorm(32, 1e-6), ffn_norm=nn.LayerNorm(32, 1e-6), **parts))
        embeddings = holder(patch_embeddings=nn.Conv2d(3, 32, 8, 8))
        embeddings.position_embeddings = nn.Parameter(torch.zeros(1, 17, 32))
        embeddings.cls_token = nn.Parameter(torch.zeros(1, 1, 32))
        self.transformer = holder(embeddings=embeddings, encoder=holder(layer=layers, encoder_norm=nn.LayerNorm(32, 1e-6)))
        self.transformer.prompt_embeddings = nn.Parameter(torch.randn(1, config.NUM_TOKENS, 32))
        self.transformer.deep_prompt_embeddings = nn.Parameter(torch.randn(1, config.NUM_TOKENS, 32))

    def forward(self, x):
        t = self.transformer
        x = torch.cat([t.embeddings.cls_token.expand(len(x), -1, -1),
                       t.embeddings.patch_embeddings(x).flatten(2).transpose(1, 2)], 1) + t.embeddings.position_embeddings
        prompts = torch.cat([t.prompt_embeddings, t.deep_prompt_embeddings])
        for layer, prompt in zip(t.encoder.layer, prompts):
            y = torch.cat([x[:, :1], prompt.expand(len(x), -1, -1), x[:, 1:]], 1)
            z = layer.attention_norm(y)
            scores = layer.attn.query(z) @ layer.attn.key(z).transpose(1, 2) / 32**0.5
            y = y + layer.attn.out(scores.softmax(-1) @ layer.attn.value(z))
            y = y + layer.ffn.fc2(F.gelu(layer.ffn.fc1(layer.ffn_norm(y))))
            x = torch.cat([y[:, :1], y[:, 1 + prompt.shape[0]:]], 1)
        return t.encoder.encoder_norm(x)[:, 0]
"""


@pytest.fixture
def checkout(tmp_path):
    file = tmp_path / 'vpt/src/models/vit_prompt/vit.py'
    file.parent.mkdir(parents=True)
    (tmp_path / 'vpt/src/utils').mkdir()  # whose files are not needed
    file.write_text(STAND_IN)
    return file


#: Card -> row of the stored table.
CARDS = dict(vpt='VPT, 50 prompts', e2vpt='E2VPT (masks off on both sides)', kadaptation='KAdaptation',
             synqt="SynQT, 16 queries (without the base's drop-path)", adapter='Adapter of PEViT', lora='LoRA of peft')


@pytest.mark.parametrize('card', CARDS)
def test_cards_say_what_was_measured(card):
    """Time, operations and kept bytes of a step, as the table beside docs/benchmarks.md has them."""
    (path, ) = ROOT.glob('docs/benchmarks/*/published.json')
    (table, ) = json.loads(path.read_text())['tables']
    rows = {row[0]: dict(zip(table['header'], row)) for row in table['rows']}
    row = rows[CARDS[card]]
    text = ' '.join((ROOT / f'docs/methods/{card}.md').read_text(encoding='utf-8').split())
    assert (f"a step takes {row['step, batch 2'].split()[0]} of its time ({row['operations']} of its operations) and keeps "
            f"{row['kept']} of its bytes") in text
    words = '' if card == 'synqt' else ', and a gradient through it,'
    assert f"A pass of the frozen base alone{words} takes {row['base alone'].split()[0]}." in text
    assert f"`{row['published']}`" in text


def run(monkeypatch, tmp_path, *words):
    monkeypatch.setattr(sys, 'argv', ['benchmark_published.py', '--batch', '2', '3', '--rounds', '1', '--out', str(tmp_path / 'out'),
                                      *map(str, words)])
    benchmark_published.main()


def test_equal_and_measured(monkeypatch, tmp_path, checkout, capsys):
    before = {name for name in sys.modules if name.split('.')[0] in ('src', 'turtle', 'timm')}
    run(monkeypatch, tmp_path, '--vpt', tmp_path / 'vpt', '--full', '--only', 'VPT, 50 prompts',
        'SynQT, 4 queries')
    said = capsys.readouterr().out
    assert 'SynQT, 4 queries: left out: give --synqt, a checkout of github.com/taolinzhang/SynQT' in said and 'built' not in said
    assert {name for name in sys.modules if name.split('.')[0] in ('src', 'turtle', 'timm')} == before
    (path, ) = tmp_path.glob('out/*/published.json')
    found = json.loads(path.read_text())
    (row, ) = found['rows']
    assert row['output'] < 1e-12 and row['gradient'] < 1e-12 and set(row['step']) == {'2', '3'}
    assert row['trained'] == dict(ours=3200, theirs=3200)
    assert row['step']['2']['of_full']['median'] > 0 and set(row['step']['3']) == {'of_theirs', 'base_of_theirs'}
    assert row['kernels']['ours'] < row['kernels']['theirs'] and row['kept']['ours'] < row['kept']['theirs']
    page = benchmark_report.write_docs(tmp_path / 'out', tmp_path / 'page.md').read_text()
    assert 'KMnP/vpt 7f3942e' in page and f'torch {torch.__version__}' in page and 'which is not shipped here' in page


def test_what_differs_is_not_timed(monkeypatch, tmp_path, checkout):
    checkout.write_text(STAND_IN.replace('32**0.5', '32'))
    with pytest.raises(SystemExit, match='outputs or gradients differ, so not timed: VPT, 50 prompts'):
        run(monkeypatch, tmp_path, '--vpt', tmp_path / 'vpt', '--only', 'VPT, 50 prompts')
    (path, ) = tmp_path.glob('out/*/published.json')
    (row, ) = json.loads(path.read_text())['rows']
    assert row['output'] > 1e-3 and 'step' not in row


@pytest.mark.parametrize('words,message', [
    (('--only', 'VPT'), "--only 'VPT': unknown; known: VPT, 50 prompts, "),
    (('--only', 'VPT, 50 prompts'), 'nothing to measure: give the folder of a checkout'),
    (('--vpt', '/nowhere', '--only', 'VPT, 50 prompts'),
     '--vpt /nowhere: no src/models/vit_prompt/vit.py in it; give a checkout of github.com/KMnP/vpt')])
def test_one_line_says_what_is_missing(monkeypatch, tmp_path, words, message):
    with pytest.raises(SystemExit) as error:
        run(monkeypatch, tmp_path, *words)
    assert message in str(error.value)


def test_a_missing_package_is_named(monkeypatch, tmp_path, checkout):
    checkout.write_text('import no_such_package\n')
    with pytest.raises(SystemExit, match="No module named 'no_such_package'; --packages names the folder"):
        run(monkeypatch, tmp_path, '--vpt', tmp_path / 'vpt', '--only', 'VPT, 50 prompts')
