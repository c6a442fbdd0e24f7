# SPDX-License-Identifier: Apache-2.0
"""One word for one thing, in prose: docs, docstrings, comments, messages. CONTRIBUTING has the glossary."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
#: Word -> what it is called here.
BANNED = {r'trunks?': 'base or backbone', r'fold(?:s|ed|ing|able)?': 'merge'}
#: Names that contain a banned word and stay, because they are public; and code in prose.
CODE = re.compile(r"``[^`]*``|`[^`]*`|:\w+:`[^`]*`|\btrunk(?:=|: '|: Mode| must be)|[\w.]*\.trunk\b|\btrunk_\w+|'trunk'|\bfold_\w+")
#: Folders in which a fold is one of a cross-validation's.
VALIDATION = ('mmpetl/sweeps/', 'mmpetl/commands/sweep.py', 'mmpetl/training/tasks.py')


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of what a person reads in a file: all of a page, comments and strings of a Python file."""
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.md':
        yield from enumerate(re.sub(r'```.*?```', lambda m: '\n' * m.group().count('\n'), text, flags=re.S).splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            # In an f-string, what stands in braces is code.
            plain = re.sub(r'\{[^{}]*\}', '', token.string) if re.match(r'[rR]?[fF]', token.string) else token.string
            yield from enumerate(plain.splitlines(), token.start[0])


def banned(path: str, lines: Iterator[tuple[int, str]]) -> list[str]:
    found = []
    for number, line in lines:
        for word, instead in BANNED.items():
            if 'fold' in word and path.startswith(VALIDATION):
                continue
            hit = re.search(rf'(?i)(?<![\w-]){word}(?![\w-])', CODE.sub('', line))
            found += [f'{path}:{number}: {hit.group()!r}: say {instead}'] if hit else []
    return found


def test_prose():
    files = [*ROOT.glob('*.md'), *(ROOT / 'docs').rglob('*.md')]
    files += [p for folder in ('mmpetl', 'configs', 'tools') for p in (ROOT / folder).rglob('*.py') if '.mim' not in p.parts]
    found = [line for path in files for line in banned(str(path.relative_to(ROOT)), prose(path))]
    assert len(files) > 450 and not found


@pytest.mark.parametrize('line, hits', [
    ('the frozen trunk', 1), ("`trunk='eval'` keeps dropout off", 0), ('Methods fold into the base', 1),
    ('``Method.fold`` and fold_input', 0), ("trunk must be 'eval'", 0), ('Folds and trunks', 2)])
def test_words_are_found(line, hits):
    assert len(banned('docs/a.md', iter([(1, line)]))) == hits
    assert len(banned('mmpetl/sweeps/plan.py', iter([(1, line)]))) <= hits
