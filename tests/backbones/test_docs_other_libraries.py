# SPDX-License-Identifier: Apache-2.0
"""Every block of docs/other_libraries.md runs, in order; only weights from the hub are replaced by those of a small model."""

import re
from pathlib import Path

import pytest

DOC = Path(__file__).resolve().parents[2] / 'docs' / 'other_libraries.md'


def test_every_block_runs(tmp_path, monkeypatch):
    transformers = pytest.importorskip('transformers')
    pytest.importorskip('timm')
    monkeypatch.chdir(tmp_path)
    config = transformers.ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8)
    transformers.ViTForImageClassification(config).save_pretrained('vit')
    blocks = re.findall(r'```python\n(.*?)```', DOC.read_text(encoding='utf-8'), re.S)
    assert len(blocks) == 7
    scope = dict(NAME='vit')
    for block in blocks:
        assert 'pretrained=True' not in block or 'timm' in block.lower()
        exec(compile(block.replace('pretrained=True', 'pretrained=False'), str(DOC), 'exec'), scope)
    assert scope['tower'].vit.petl is not None and not len(scope['tower'].vit.petl)
    opened = transformers.AutoModelForImageClassification.from_pretrained('merged')
    assert type(opened) is transformers.ViTForImageClassification
    assert [len(scope[name]) for name in ('birds', 'flowers', 'own')] == [200, 102, 10]
    assert list(scope['other'].petl) == ['lora_q', 'lora_k', 'lora_v'] and Path('net.safetensors').is_file()
