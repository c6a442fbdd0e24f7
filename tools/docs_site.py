# SPDX-License-Identifier: Apache-2.0
"""What MkDocs adds to docs/ when it builds the site: README as front page, pages of the root, API pages, linked files.

    pip install -e . -r requirements/docs.txt
    mkdocs build --strict           # site/; or: mkdocs serve
"""

import ast
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
FROM_ROOT = {'README.md': 'index.md', 'CONTRIBUTING.md': 'contributing.md', 'CHANGELOG.md': 'changelog.md',
             'SECURITY.md': 'reporting.md'}
#: A role of Sphinx in a docstring, as Markdown makes it: upstream's docstrings and ours name things in this way.
ROLE = re.compile(r':(?:mod|class|func|meth|data|attr|obj):<code>~?')
LINK = re.compile(r'(!?\[[^\]]*\])\(([^)#\s]+)(#[^)\s]*)?\)')
# rooms whose classes and functions a user names in configs or calls; the face, `mmpetl.*`, has a page of its own
ROOMS = {
    'methods': 'Methods: types for `petl=[...]`',
    'backbones': 'Backbones: types for `model.backbone`',
    'models': 'Heads and text features',
    'datasets': 'Data sets, lists and transforms',
    'evaluation': 'Metrics',
    'hooks': 'Hooks',
    'features': 'The feature cache',
    'adapters': 'Adapters in use',
    'weights': 'Files: adapters, converters, export',
    'pruning': "E2VPT's pruning",
    'sweeps': 'Sweeps and reports',
    'costs': 'Parameters, memory, operations',
    'training': 'Runs, options, optimizers',
    'sites': 'Places in a backbone where methods act',
}


def resolved(target: str, page: Path) -> str:
    """A link of a page at ``page`` (relative to the root), relative to the root; '' if it leads out of the project."""
    path = os.path.normpath(page.parent / target)
    return '' if path.startswith('..') or not (ROOT / path).exists() else path


def place(path: str) -> str:
    """Where a file of the project is in the site."""
    if path in FROM_ROOT:
        return FROM_ROOT[path]
    if path == 'docs/adr':
        return 'adr/index.md'
    if path == 'docs/methods':
        return 'methods/README.md'
    return path[len('docs/'):] if path.startswith('docs/') else f'files/{path}.txt'


def moved(text: str, page: Path) -> str:
    """The text of a page with its links as the site has them; a folder is named and not linked."""
    own = Path(place(page.as_posix())).parent

    def link(match: re.Match[str]) -> str:
        label, target, anchor = match.group(1), match.group(2), match.group(3) or ''
        if '://' in target or target.startswith('mailto:'):
            return match.group(0)
        path = resolved(target, page)
        if not path:
            return match.group(0)  # MkDocs names it, and --strict fails
        if (ROOT / path).is_dir() and path not in ('docs/methods', 'docs/adr'):
            return label[1:-1]
        return f'{label}({os.path.relpath(place(path), own)}{anchor})'

    return LINK.sub(link, text)


def public(source: Path) -> list[str]:
    """Public functions and classes that a module defines."""
    tree = ast.parse(source.read_text(encoding='utf-8'))
    return [node.name for node in tree.body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_')]


def room_page(room: str, title: str) -> str:
    """One page with every public name of a room."""
    parts = [f'# {title}\n']
    for source in sorted((ROOT / 'mmpetl' / room).rglob('*.py')):
        module = '.'.join(source.relative_to(ROOT).with_suffix('').parts)
        if module.endswith('__init__') or not public(source):
            continue
        parts.append(f'\n## {module}\n')
        parts += [f'\n::: {module}.{name}\n' for name in public(source)]
    return ''.join(parts)


def face_page() -> str:
    """The page of what ``import mmpetl`` offers, each name where it is defined."""
    tree = ast.parse((ROOT / 'mmpetl' / 'apis.py').read_text(encoding='utf-8'))
    homes = {alias.asname or alias.name: f'mmpetl.{node.module}.{alias.name}'
             for node in tree.body if isinstance(node, ast.ImportFrom) and node.level for alias in node.names}
    homes |= {name: f'mmpetl.apis.{name}' for name in public(ROOT / 'mmpetl' / 'apis.py')}
    names = next(ast.literal_eval(node.value) for node in tree.body
                 if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__')
    shown = '    options: {show_root_heading: false, show_root_toc_entry: false}'
    sections = (f'\n## mmpetl.{name}\n\n::: {homes[name]}\n{shown}\n' for name in names)
    return '# Python: `import mmpetl`\n' + ''.join(sections)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/, and every file that a page links to."""
    def add(name: str, text: str) -> None:
        files.append(File.generated(config, name, content=text))

    for source, name in FROM_ROOT.items():
        add(name, (ROOT / source).read_text(encoding='utf-8'))
    add('api/index.md', face_page())
    decisions = [(path.name, path.read_text(encoding='utf-8').splitlines()[0].lstrip('# '))
                 for path in sorted((ROOT / 'docs/adr').glob('0*.md'))]
    add('adr/index.md', '# Decisions\n\n' + ''.join(f'* [{title}]({name})\n' for name, title in decisions))
    for room, title in ROOMS.items():
        add(f'api/{room}.md', room_page(room, title))
    pages = [ROOT / name for name in FROM_ROOT] + sorted((ROOT / 'docs').rglob('*.md'))
    linked = {path for page in pages for _, target, _ in LINK.findall(page.read_text(encoding='utf-8'))
              if (path := resolved(target, page.relative_to(ROOT))) and (ROOT / path).is_file()}
    for path in sorted(linked):
        if path not in FROM_ROOT and not path.startswith('docs/'):
            add(place(path), (ROOT / path).read_text(encoding='utf-8'))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links as the site has them."""
    names = {name: source for source, name in FROM_ROOT.items()}
    source = Path(names.get(page.file.src_uri, f'docs/{page.file.src_uri}'))
    return markdown if page.file.src_uri.startswith('api/') else moved(markdown, source)


def on_page_content(html: str, **_: Any) -> str:
    """Names in docstrings without the role that stands before them."""
    return ROLE.sub('<code>', html)
