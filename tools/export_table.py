# SPDX-License-Identifier: Apache-2.0
"""The table of backbones and export formats in docs/adapters.md, read off the small backbones of tests/cases.py.

    python tools/export_table.py            print it
    python tools/export_table.py --write    put it into docs/adapters.md
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

from pages import between  # noqa: E402

BEGIN, END = '<!-- export table: python tools/export_table.py --write -->', '<!-- end of export table -->'
NONE = '–'


def row(title: str, backbone: Any) -> str:
    """A line of the table for an upstream backbone: what the merged weights, a LoRA, and other kinds of peft can be."""
    import mmpetl
    from mmpetl.commands.export import own_library
    from mmpetl.weights.archs import ALL_ARCHS, known_elsewhere
    from mmpetl.weights.export import has_hf_config, libraries
    mmpetl.attach(backbone, [dict(type='LoRA', rank=2)])
    arch, state, own = backbone.petl.family.arch(backbone), backbone.state_dict(), own_library(backbone)
    names = [name for name in libraries(arch) if name != 'hf' or has_hf_config(state, arch)]
    lora = {name for name in ('timm', 'hf', 'hf4', 'original') if arch in ALL_ARCHS and name != own
            and name in known_elsewhere(state, arch, name).lora}
    with tempfile.TemporaryDirectory() as folder:
        try:
            mmpetl.save_peft(backbone, f'{folder}/peft')
            held = own
        except ValueError:
            held = NONE
    cells = [', '.join(sorted(names)) or NONE, ', '.join(sorted(lora | {held} - {NONE})) or NONE, held]
    return f'| {title} | {own} | ' + ' | '.join(cells) + ' |'


def table() -> str:
    """Markdown table of all families."""
    sys.path[:0] = [str(ROOT), str(ROOT / 'tests')]
    from cases import BACKBONES, FOREIGN
    lines = ['| backbone | `--to safetensors` has the names of | `--to`, merged | `--to peft --library`, LoRA '
             '| further kinds of peft |', '|---|---|---|---|---|']
    shown = [entry for entry in (*BACKBONES, *FOREIGN) if entry.name != 'clip_frames']
    lines += [row(entry.title, entry.build_upstream()) for entry in shown]
    return '\n'.join(lines)


def updated(page: str) -> str:
    """The page with the table between its two marks."""
    return between(page, BEGIN, END, table())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--write', action='store_true', help='put the table into docs/adapters.md')
    path = ROOT / 'docs' / 'adapters.md'
    if parser.parse_args().write:
        path.write_text(updated(path.read_text(encoding='utf-8')), encoding='utf-8')
    else:
        print(table())


if __name__ == '__main__':
    main()
