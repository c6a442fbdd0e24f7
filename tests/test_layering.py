"""Who may import whom, and how long files and functions may be; see docs/adr and CONTRIBUTING."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'mmpetl'
FILES = sorted(p for folder in ('mmpetl', 'tools') for p in (ROOT / folder).rglob('*.py') if '.mim' not in p.parts)
MAX_FILE, MAX_FUNCTION = 500, 60

UPSTREAM = {'mmpretrain', 'mmaction', 'mmcv'}
#: room -> rooms of mmpetl that it may import besides itself (None: any)
MAY_IMPORT = {
    'sites': set(),
    'recompute': set(),
    'registry': set(),
    'version': set(),
    'methods': {'sites', 'registry', 'recompute'},
    'backbones': {'sites', 'registry', 'recompute', 'weights', 'compat'},
    'weights': {'version'},
}
#: room -> rooms of mmpetl that it must not import
MUST_NOT_IMPORT = {room: {'backbones', 'methods'} for room in ('datasets', 'evaluation', 'models')}
#: room -> packages from outside (besides the standard library) that it may import; rooms not named may import any
OUTSIDE = {'sites': {'torch', 'mmengine'}, 'recompute': {'torch'}, 'registry': {'mmengine'}}
#: room -> packages from outside that it must not import
NOT_OUTSIDE = {'methods': UPSTREAM}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imports(source: str, package: tuple[str, ...], module_level: bool = False) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of everything that a file of ``package`` imports; ``from . import x`` counts as
    importing x."""
    tree = ast.parse(source)
    bodies = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lazy = {id(node) for body in bodies for node in ast.walk(body)}
    for node in ast.walk(tree):
        if module_level and id(node) in lazy:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(package[:len(package) - node.level + 1]) if node.level else ''
            module = '.'.join(part for part in (base, node.module) if part)
            yield from ((node.lineno, f'{module}.{alias.name}') for alias in node.names)


def problems(source: str, room: str, package: tuple[str, ...]) -> list[str]:
    """What a file of ``room`` imports against the rules."""
    found = []
    for line, name in imports(source, package):
        top, _, rest = name.partition('.')
        if top == 'mmpetl':
            target = rest.split('.')[0]
            allowed = MAY_IMPORT.get(room)
            if target != room and (allowed is not None and target not in allowed
                                   or target in MUST_NOT_IMPORT.get(room, ())):
                found.append(f'{line}: {room} must not import {name}')
        elif top not in sys.stdlib_module_names:
            if room in OUTSIDE and top not in OUTSIDE[room] or top in NOT_OUTSIDE.get(room, ()):
                found.append(f'{line}: {room} must not import {name}')
    if room == 'weights':  # converting a file must not need the OpenMMLab stack
        found += [
            f'{line}: weights must not import {name} at module level'
            for line, name in imports(source, package, module_level=True)
            if name.startswith('mm') and not name.startswith(('mmpetl.weights', 'mmpetl.version'))
        ]
    return found


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, lines without docstring) of every function."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(
                first.value.value, str)
            docstring = first.end_lineno - first.lineno + 1 if documented else 0
            yield node.name, node.end_lineno - node.lineno + 1 - docstring


@pytest.mark.parametrize('path', [p for p in FILES if PACKAGE in p.parents], ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path):
    package = path.parent.relative_to(ROOT).parts
    assert problems(path.read_text(encoding='utf-8'), room_of(path), package) == []


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path):
    source = path.read_text(encoding='utf-8')
    assert len(source.splitlines()) <= MAX_FILE
    assert {name: lines for name, lines in functions(ast.parse(source)) if lines > MAX_FUNCTION} == {}


@pytest.mark.parametrize('room, source', [
    ('sites', 'import numpy'),
    ('sites', 'from mmpetl import registry'),
    ('sites', 'from .weights import io'),
    ('methods', 'from ..backbones import attach'),
    ('methods', 'from .. import backbones'),
    ('methods', 'import mmpretrain.models'),
    ('methods', 'def f():\n    from mmaction.models import X'),
    ('methods', 'from mmpetl.apis import attach'),
    ('backbones', 'from mmpetl.methods.lora import LoRA'),
    ('backbones', 'from ..methods import LoRA'),
    ('weights', 'import mmengine'),
    ('weights', 'from ..sites import BlockSpec'),
    ('datasets', 'from ..backbones.vit import x'),
    ('models', 'import mmpetl.methods'),
    ('evaluation', 'from mmpetl.methods import LoRA'),
])
def test_the_rules_catch(room, source):
    assert len(problems(source, room, ('mmpetl', ) if room == 'sites' else ('mmpetl', room))) >= 1


@pytest.mark.parametrize('room, source', [
    ('sites', 'import torch, mmengine, dataclasses'),
    ('methods', 'from ..sites import Method\nfrom .bottleneck import Adapter\nimport numpy'),
    ('backbones', 'from mmpretrain.models import VisionTransformer\nfrom ..weights import convert'),
    ('weights', 'def f():\n    import mmengine'), ('datasets', 'from ..registry import DATASETS\nimport mmpretrain'),
])
def test_the_rules_allow(room, source):
    assert problems(source, room, ('mmpetl', ) if room == 'sites' else ('mmpetl', room)) == []


def test_sizes_are_counted_without_docstrings():
    source = 'def f():\n    """One.\n\n    Two.\n    """\n    return 1\n'
    assert list(functions(ast.parse(source))) == [('f', 2)]
