# SPDX-License-Identifier: Apache-2.0
"""Every public function that takes or returns a tensor says its shape."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / 'mmpetl'
#: Words for a size that may stand in a shape beside capitals such as B, N and Cout, numbers and dots.
SIZES = ('channels', 'classes', 'columns', 'embedding', 'entries', 'ffn_dim', 'head_dim', 'heads', 'num_tokens', 'rank',
         'rows', 'tokens', 'videos', 'windows', 'dim', 'extra', 'front', 'keys', 'length', 'd', 'h', 'm', 'n')
_STATE = re.compile(r'(?:Dict|Mapping|MutableMapping|OrderedDict|dict)\[str, (?:torch\.)?Tensor\]')
_SYMBOL = rf"(?:[A-Z][a-z]{{0,3}}'?|\d|{'|'.join(SIZES)})(?!\w)"
_SIZE = re.compile(rf'\.\.\.|[\[\]]? ?{_SYMBOL}(?: or \w+| [A-Z]|[ ]?[*/+-].*|\]| \[.*)?')


def shapes(text: str) -> list[str]:
    """The shapes in a docstring: ``(B, N, C)``, ``(..., C)``, ``(C)``, ``(rank, Cin)``."""
    found = [group for group in re.findall(r'\(([^()]*)\)', text)
             if group.strip() and all(_SIZE.fullmatch(part.strip()) for part in group.strip().rstrip(',').split(','))]
    return [group for group in found if ',' in group or re.fullmatch(r'\.\.\.|[A-Z][a-z]{0,3}\'?', group.strip())]


def functions(source: str) -> Iterator[tuple[str, int, bool, str]]:
    """(name, line, whether it has a tensor, docstring) of every public function and method. A state dict is no tensor:
    each of its tensors has a shape of its own."""

    def walk(body: list[ast.stmt], prefix: str) -> Iterator[tuple[str, int, bool, str]]:
        for node in body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith('_'):
                yield from walk(node.body, f'{node.name}.')
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith('_'):
                arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg,
                             node.args.kwarg)
                kinds = [a.annotation for a in arguments if a and a.annotation] + ([node.returns] if node.returns else [])
                tensor = any(re.search(r'\bTensor\b', _STATE.sub('', ast.unparse(kind))) for kind in kinds)
                yield prefix + node.name, node.lineno, tensor, ast.get_docstring(node) or ''

    yield from walk(ast.parse(source).body, '')


def test_every_tensor_has_a_shape():
    seen, bare = 0, []
    for path in sorted(PACKAGE.rglob('*.py')):
        for name, line, tensor, text in functions(path.read_text(encoding='utf-8')):
            seen += tensor
            if tensor and not shapes(text):
                bare.append(f'{path.relative_to(PACKAGE)}:{line} {name}')
    assert seen > 250 and not bare


@pytest.mark.parametrize('text, told', [
    ('x (B, N, C) -> same shape.', True), ('(..., C) -> (..., C).', True), ('Weight (Cout, Cin) and bias (Cout).', True),
    ('A scale (C,).', True), ('Normed input -> output.', False), ('Trim, average (disjoint mean).', False),
    ('Tokens in front (class token, prompts).', False), ('See (see eq. 3).', False)])
def test_shapes_are_told_apart_from_prose(text, told):
    assert bool(shapes(text)) == told


def test_a_function_without_shapes_is_found():
    source = 'class A:\n    def f(self, x: Optional[Tensor]) -> None:\n        """Does it."""\n    def _g(x: Tensor): pass\n'
    assert [(name, tensor, shapes(text)) for name, _, tensor, text in functions(source)] == [('A.f', True, [])]
