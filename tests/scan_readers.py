# SPDX-License-Identifier: Apache-2.0
"""Every function of the project that opens or reads a file, found in its source; loaded by path, tests are no package."""

import ast
from pathlib import Path
from typing import Dict, Iterator, List, Set, Tuple

ROOT = Path(__file__).resolve().parents[1]
#: Functions and methods by the last part of their name.
CALLS = {
    'open', 'open_regular', 'read_text', 'read_bytes', 'read_json', 'read_arrays', 'read_lines', 'safe_open', 'read_tensors',
    'ZipFile', 'GzipFile', 'extractfile', 'extractall', 'imread', 'imfrombytes', 'VideoReader', 'VideoCapture', 'memmap',
    'loadtxt', 'genfromtxt', 'from_file', 'fromfile', 'dcmread', 'TiffFile', 'read_array', 'load_file', 'get_bytes',
    'read_table', 'literal_eval', 'read_csv', 'read_safetensors_header', 'fdopen', 'sha256_of',
}
#: Methods that count after these names alone.
OWNED = {('torch', 'load'), ('np', 'load'), ('json', 'load'), ('json', 'loads'), ('onnx', 'load'), ('pickle', 'load'),
         ('pickle', 'loads'), ('yaml', 'load'), ('yaml', 'safe_load'), ('mmengine', 'load'), ('fileio', 'get'),
         ('adapter_file', 'load'), ('tomllib', 'load'), ('toml', 'load'), ('cv2', 'imdecode'), ('ET', 'parse'),
         ('gzip', 'decompress'), ('ast', 'parse')}


def reads(call: ast.AST) -> bool:
    """Whether a call opens or reads a file."""
    if not isinstance(call, ast.Call):
        return False
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, 'id', '')
    if name in CALLS:
        writes = [a for a in [*call.args[1:2], *(k.value for k in call.keywords if k.arg == 'mode')]
                  if isinstance(a, ast.Constant) and isinstance(a.value, str) and a.value[:1] in 'wax']
        return not (name in ('open', 'fdopen', 'ZipFile') and writes)
    owner = function.value if isinstance(function, ast.Attribute) else None
    return isinstance(owner, ast.Name) and (owner.id, name) in OWNED


def _functions(tree: ast.AST, prefix: str = '') -> Iterator[Tuple[str, List[ast.AST]]]:
    """(qualified name, own nodes without those of inner functions)."""
    body: List[ast.AST] = []
    stack = list(ast.iter_child_nodes(tree))
    while stack:
        node = stack.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield from _functions(node, f'{prefix}{node.name}.')
            continue
        body.append(node)
        stack += ast.iter_child_nodes(node)
    yield prefix.rstrip('.') or '<module>', body


def functions_of(path: Path) -> List[Tuple[str, int]]:
    """(qualified name, first line with decorators, as code objects count) of every function of a file."""
    found = []

    def visit(node: ast.AST, prefix: str) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                name = f'{prefix}{child.name}'
                found.append((name, min([child.lineno, *(d.lineno for d in child.decorator_list)])))
                visit(child, f'{name}.')
            else:
                visit(child, prefix)

    visit(ast.parse(path.read_text(encoding='utf-8')), '')
    return found


def read_calls(reader: str) -> List[str]:
    """Last parts of the names that a reader calls to read."""
    file, _, wanted = reader.partition(':')
    tree = ast.parse((ROOT / file).read_text(encoding='utf-8'))
    nodes = next(nodes for name, nodes in _functions(tree) if name == wanted)
    return [getattr(n.func, 'attr', getattr(n.func, 'id', '')) for n in nodes if isinstance(n, ast.Call) and reads(n)]


def readers() -> Set[str]:
    """``'mmpetl/weights/io.py:load_file'`` and so on."""
    found: Dict[str, int] = {}
    for folder in ('mmpetl', 'tools'):
        for path in sorted((ROOT / folder).rglob('*.py')):
            if '.mim' in path.parts:
                continue
            for name, nodes in _functions(ast.parse(path.read_text(encoding='utf-8'))):
                if any(reads(n) for n in nodes):
                    found[f'{path.relative_to(ROOT).as_posix()}:{name}'] = 1
    return set(found)


if __name__ == '__main__':
    print('\n'.join(sorted(readers())))
