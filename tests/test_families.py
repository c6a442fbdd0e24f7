# SPDX-License-Identifier: Apache-2.0
"""A family is named in its own files alone: everyone else asks its row."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmpetl.backbones.family import FAMILIES
from mmpetl.weights.archs import ALL_ARCHS, FORMATS

ROOT = Path(__file__).resolve().parents[1]
#: The table, and the files of each family: of its blocks, and of its weights.
OWN = {f'mmpetl/{room}/{name}.py' for room in ('backbones', 'weights') for name in (*FAMILIES, *ALL_ARCHS)} | {
    'mmpetl/backbones/family.py',
    # Says the choices of --arch before anything big is imported.
    'mmpetl/commands/arguments/convert.py'}
NAMES = {*FAMILIES, *ALL_ARCHS, *FORMATS, *(kind for entry in FAMILIES.values() for kind in (*entry.types, *entry.towers))}


def literals(source: str) -> Iterator[tuple[int, str]]:
    """(line, name) of every family named by a string, with or without the registry's prefix, or by a key of ``dict``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found = [node.value.removeprefix('mmpetl.')]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
            found = [keyword.arg for keyword in node.keywords if keyword.arg]
        else:
            continue
        yield from ((node.lineno, name) for name in found if name in NAMES)


def test_families_are_named_in_their_own_files_alone():
    files = [p for folder in ('mmpetl', 'tools') for p in (ROOT / folder).rglob('*.py') if '.mim' not in p.parts]
    found = {f'{path.relative_to(ROOT)}:{line}: {name!r}' for path in files
             if str(path.relative_to(ROOT)) not in OWN
             for line, name in literals(path.read_text(encoding='utf-8'))}
    assert len(files) > 150 and not found


@pytest.mark.parametrize('planted', ["if arch == 'clip': pass", 'x = dict(videomae=1)', "kind = 'mmpetl.SwinTransformer'",
                                     "name.startswith('vit')", "T = {('timm', 'hf_clip'): 0}", "f'{x}swin'"])
def test_a_planted_name_is_found(planted):
    assert list(literals(planted))
