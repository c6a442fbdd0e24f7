# SPDX-License-Identifier: Apache-2.0
"""What every method needs stands once, in the base class: options over blocks, modules by block."""

import re
from pathlib import Path

import pytest

METHODS = sorted((Path(__file__).resolve().parents[2] / 'mmpetl' / 'methods').glob('*.py'))
#: Written anew -> what does it.
ANEW = {r'\bper_layer\(': 'Method.spread', r'ModuleDict\(\s*\{\s*str\(i\)\s*:': 'Method.for_blocks'}


def written_anew(source: str) -> list[str]:
    return [instead for pattern, instead in ANEW.items() if re.search(pattern, source)]


def test_methods_use_the_base_class():
    assert len(METHODS) > 25
    assert not {path.name: found for path in METHODS if (found := written_anew(path.read_text(encoding='utf-8')))}


@pytest.mark.parametrize('planted', ["mids = per_layer(mid_dims, self.layers, 12, 'mid_dims')",
                                     'nn.ModuleDict({\n    str(i): nn.Linear(3, 3) for i in self.layers})'])
def test_a_planted_idiom_is_found(planted):
    assert written_anew(planted)
