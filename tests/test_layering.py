# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, and how long files and functions may be; see docs/adr and CONTRIBUTING."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rooms import ROOM, ROOMS, updated

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / 'mmpetl'
FILES = sorted(p for folder in ('mmpetl', 'tools', 'benchmarks') for p in (ROOT / folder).rglob('*.py') if '.mim' not in p.parts)
MAX_FILE, MAX_FUNCTION, MAX_COLUMNS = 500, 60, 120
MODULES = {'.'.join(p.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): p
           for p in FILES if PACKAGE in p.parents}


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imports(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str, bool]]:
    """(line, absolute dotted name, inside a function) of all that a file of ``package`` imports.

    ``from . import x`` counts as importing x, and ``import_module('a.b')`` as ``import a.b`` where the name is a literal.
    """
    tree = ast.parse(source)
    bodies = [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    lazy = {id(node) for body in bodies for node in ast.walk(body)}
    for node in ast.walk(tree):
        inside = id(node) in lazy
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(package[:len(package) - node.level + 1]) if node.level else ''
            module = '.'.join(part for part in (base, node.module) if part)
            yield from ((node.lineno, f'{module}.{alias.name}', inside) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split('.')[-1] in ('import_module', '__import__'):
            name = node.args[0].value if node.args and isinstance(node.args[0], ast.Constant) else ''
            if name.startswith('.'):  # relative to the package that is handed along, here always the file's own
                dots = len(name) - len(name.lstrip('.'))
                name = '.'.join((*package[:len(package) - dots + 1], name.lstrip('.')))
            if name:
                yield node.lineno, name, inside


def problems(source: str, name: str, package: tuple[str, ...]) -> list[str]:
    """What a file of the room ``name`` imports against its row."""
    found, room = [], ROOM[name]
    for line, target, inside in imports(source, package):
        top, _, rest = target.partition('.')
        other = rest.split('.')[0]
        if top == 'mmpetl':
            if f'mmpetl.{other}' not in MODULES:  # the package itself, or a name of its face
                other = '__init__'
            if other == '__init__' and name != '__init__':
                found.append(f"{line}: {name} must not import the package's face")
            elif other not in (name, *room.imports):
                found.append(f'{line}: {name} must not import {target}')
            elif other != name and inside and not room.lazy:
                found.append(f'{line}: {name} imports {target} inside a function')
        elif top not in sys.stdlib_module_names:
            if room.outside is not None and top not in room.outside or top in room.never:
                found.append(f'{line}: {name} must not import {target}')
            if name == 'weights' and top.startswith('mm') and not inside:  # converting a file needs no OpenMMLab
                found.append(f'{line}: weights must not import {target} at module level')
    return found


def package_of(room: str) -> tuple[str, ...]:
    return ('mmpetl', room) if (PACKAGE / room).is_dir() else ('mmpetl', )


def circles(files: dict[str, str]) -> list[set[str]]:
    """Groups of modules that import each other, in functions too; a package's ``__init__`` is no member of a circle
    with its own files.

    Args:
        files: Source by module name.
    """
    graph = {}
    for name, source in files.items():
        folder = tuple(name.split('.')) if MODULES.get(name, Path()).name == '__init__.py' else tuple(name.split('.')[:-1])
        wanted = {target for _, target, _ in imports(source, folder)}
        wanted |= {target.rpartition('.')[0] for target in wanted if target not in files}
        graph[name] = {w for w in wanted if w in files and w != name and not name.startswith(f'{w}.')}

    def reach(name: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph[name])
        while todo:
            each = todo.pop()
            if each not in seen:
                seen.add(each)
                todo += graph[each]
        return seen

    far = {name: reach(name) for name in graph}
    rings = {frozenset({b for b in far[a] if a in far[b]} | {a}) for a in graph if a in far[a]}
    return [set(ring) for ring in sorted(rings, key=sorted)]


def functions(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """(name, lines without docstring) of every function."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(
                first.value.value, str)
            docstring = first.end_lineno - first.lineno + 1 if documented else 0
            yield node.name, node.end_lineno - node.lineno + 1 - docstring


@pytest.mark.parametrize('path', MODULES.values(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports(path):
    package = path.parent.relative_to(ROOT).parts
    assert problems(path.read_text(encoding='utf-8'), room_of(path), package) == []


def test_every_room_has_a_row():
    assert sorted({room_of(path) for path in MODULES.values()}) == sorted(ROOM)


def test_rows_go_from_low_to_high():
    for place, room in enumerate(ROOMS):
        assert set(room.imports) <= {lower.name for lower in ROOMS[:place]}, room.name


def test_no_circles():
    files = {name: path.read_text(encoding='utf-8') for name, path in MODULES.items()}
    assert circles(files) == []


def test_circles_are_found():
    files = {'mmpetl.x': '', 'mmpetl.x.a': 'from .b import f', 'mmpetl.x.b': 'def g():\n    from . import a',
             'mmpetl.x.c': 'from . import a'}
    assert circles(files) == [{'mmpetl.x.a', 'mmpetl.x.b'}]


def test_contributing_prints_the_table():
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    assert updated(text) == text, 'run python tests/rooms.py --write'


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_sizes(path):
    source = path.read_text(encoding='utf-8')
    assert len(source.splitlines()) <= MAX_FILE
    if PACKAGE in path.parents:
        assert [n for n, line in enumerate(source.splitlines(), 1) if len(line) > MAX_COLUMNS] == []
    assert {name: lines for name, lines in functions(ast.parse(source)) if lines > MAX_FUNCTION} == {}


@pytest.mark.parametrize('room, source', [
    ('sites', 'import numpy'), ('sites', 'from mmpetl import registry'), ('sites', 'from ..weights import io'),
    ('methods', 'from ..backbones import attach'), ('methods', 'from .. import backbones'),
    ('methods', 'import mmpretrain.models'), ('methods', 'def f():\n    from mmaction.models import X'),
    ('methods', 'from mmpetl.apis import attach'), ('methods', 'from ..weights import io'),
    ('methods', 'from mmpetl import attach'), ('methods', 'import mmpetl'),
    ('methods', "import importlib\nimportlib.import_module('mmpetl.backbones.vit')"),
    ('sites', "__import__('mmpetl.tuning')"), ('hooks', "import_module('..apis', __package__)"),
    ('backbones', 'from mmpetl.methods.lora import LoRA'), ('backbones', 'from ..methods import LoRA'),
    ('weights', 'import mmengine'), ('weights', 'from ..sites import BlockSpec'),
    ('tuning', 'from .backbones import attach'), ('tuning', 'from .methods import LoRA'),
    ('tuning', 'def f():\n    from .weights import io'), ('merging', 'from .adapters import bank'), ('adapters', 'from ..training.build import x'),
    ('datasets', 'from ..backbones.vit import x'), ('models', 'import mmpetl.methods'),
    ('evaluation', 'from mmpetl.methods import LoRA'), ('features', 'from ..training import run'),
    ('hooks', 'from ..apis import attach'), ('hooks', 'from ..training.run import x'),
    ('pruning', 'from ..sweeps import plan'), ('training', 'from ..costs import plan'),
    ('training', 'from ..commands import main'), ('costs', 'from ..sweeps import report'),
    ('sweeps', 'from ..commands import report'), ('sweeps', 'def f():\n    from ..training.run import x'),
    ('compat', 'from ..sites import x'), ('recompute', 'import mmengine'), ('registry', 'import torch'),
    ('clean_errors', 'from .training import run'), ('console', 'import torch'), ('apis', 'from .commands import main'), ('version', 'import torch'),
    ('on_import', 'import mmengine'), ('suggest', 'from .sites import x'), ('names', 'import torch'), ('recipes', 'import mmengine'), ('__init__', 'import torch'), ('__main__', 'from .training import run'), ('commands', 'from .. import attach'),
])
def test_the_rules_catch(room, source):
    assert len(problems(source, room, package_of(room))) >= 1


def test_the_rules_catch_something_in_every_room():
    caught = test_the_rules_catch.pytestmark[0].args[1]
    assert {room for room, _ in caught} == set(ROOM)


@pytest.mark.parametrize('room, source', [
    ('sites', 'import torch, mmengine, dataclasses'),
    ('methods', 'from ..sites import Method\nfrom .bottleneck import Adapter\nimport numpy'),
    ('backbones', 'from mmpretrain.models import VisionTransformer\nfrom ..weights import convert'),
    ('weights', 'def f():\n    import mmengine'), ('datasets', 'from ..registry import DATASETS\nimport mmpretrain'),
    ('commands', 'def f():\n    from ..training.run import train'),
])
def test_the_rules_allow(room, source):
    assert problems(source, room, package_of(room)) == []


def test_sizes_are_counted_without_docstrings():
    source = 'def f():\n    """One.\n\n    Two.\n    """\n    return 1\n'
    assert list(functions(ast.parse(source))) == [('f', 2)]


def test_every_source_file_names_its_licence():
    """By its SPDX line, first or behind the interpreter's. Configs are settings."""
    tracked = subprocess.run(['git', 'ls-files', '*.py', '*.sh', '.ci/run'], cwd=ROOT, capture_output=True,
                             text=True).stdout.split()
    files = [p for p in tracked if not p.startswith('configs/') and (ROOT / p).exists()]
    bare = [p for p in files
            if '# SPDX-License-Identifier: Apache-2.0' not in (ROOT / p).read_text(encoding='utf-8').splitlines()[:2]]
    assert len(files) > 400 and not bare and 'Apache License' in (ROOT / 'LICENSE').read_text()[:200]
