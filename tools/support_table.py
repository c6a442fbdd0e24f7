# SPDX-License-Identifier: Apache-2.0
"""The table of methods and backbones in docs/methods/README.md, generated from tests/cases.py.

    python tools/support_table.py            print it
    python tools/support_table.py --write    put it into docs/methods/README.md
"""

import argparse
import sys
from pathlib import Path
from typing import List

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

from pages import between  # noqa: E402

BEGIN, END = '<!-- support table: python tools/support_table.py --write -->', '<!-- end of support table -->'


def table() -> str:
    """Markdown table of tests/cases.py, with the reason of each refusal."""
    sys.path.insert(0, str(ROOT / 'tests'))
    from cases import BACKBONE, BACKBONES, FOREIGN, METHODS
    lines = [
        '| method | ' + ' | '.join(b.title for b in BACKBONES) + ' | start | merges | not elsewhere, because |',
        '|---' * (len(BACKBONES) + 4) + '|'
    ]
    notes: List[str] = []
    for case in METHODS:
        cells = ['✓' if b.name in case.on else '–' for b in BACKBONES]
        start, folds = 'exact' if case.identity else 'changed', 'yes' if case.folds else 'no'
        lines.append(f'| {case.name} | ' + ' | '.join(cells) + f' | {start} | {folds} | {case.note} |')
    for like in dict.fromkeys(entry.like for entry in FOREIGN):
        names = ', '.join(f'{entry.title}' for entry in FOREIGN if entry.like == like)
        lines += ['', f'As {BACKBONE[like].title}: {names}.']
    for entry in (t for t in FOREIGN if t.without or t.unmerged):
        parts = [f'without {", ".join(entry.without)}'] if entry.without else []
        parts += [f'{" and ".join(entry.unmerged)} do not merge'] if entry.unmerged else []
        notes.append(f'{entry.title}: {"; ".join(parts)}.')
    return '\n'.join([*lines, '', *(f'* {note}' for note in notes)])


def updated(readme: str) -> str:
    """The page with the table between its two marks."""
    return between(readme, BEGIN, END, table())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--write', action='store_true', help='put the table into README.md')
    path = ROOT / 'docs' / 'methods' / 'README.md'
    if parser.parse_args().write:
        path.write_text(updated(path.read_text(encoding='utf-8')), encoding='utf-8')
    else:
        print(table())


if __name__ == '__main__':
    main()
