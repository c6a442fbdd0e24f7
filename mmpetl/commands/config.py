# SPDX-License-Identifier: Apache-2.0
"""``mmpetl config list | show``: the shipped configs, by name."""

import argparse
import ast
from pathlib import Path
from typing import Any

from ..recipes import find_config, folder, recipes


def add_parser(subparsers: Any) -> None:
    """Add ``config`` with its actions ``list`` and ``show``."""
    parser = subparsers.add_parser('config', help='list and show the shipped configs')
    actions = parser.add_subparsers(dest='action', metavar='ACTION', required=True)
    listed = actions.add_parser('list', help='names and first lines of the shipped configs')
    listed.add_argument('words', nargs='*', metavar='WORD', help='only configs with all these words in their path')
    listed.add_argument('--names', action='store_true', help='names alone, one per line')
    listed.set_defaults(run=run_list)
    shown = actions.add_parser('show', help='a config with everything that it inherits')
    shown.add_argument('config', help='config file, or the name of a shipped one')
    shown.add_argument('--cfg-options', '--set', nargs='+', metavar='KEY=VALUE', help='override entries')
    shown.set_defaults(run=run_show)


def first_line(path: Path) -> str:
    """First line of a config's docstring, or an empty text."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8')), clean=True) or ''
    return text.splitlines()[0] if text else ''


def run_list(args: argparse.Namespace) -> int:
    """Print the shipped configs; status 1 if none has the words."""
    found = {name: path for name, path in recipes().items()
             if all(word in str(path.relative_to(folder())) for word in args.words)}
    for name, path in found.items():
        print(name if args.names else f'{name}\n    {first_line(path)}')
    if not found:
        raise ValueError(f'no shipped config has all of {" ".join(args.words)} in its path; give fewer words, '
                         '`mmpetl config list` names all')
    return 0


def run_show(args: argparse.Namespace) -> int:
    """Print a config as it is read, with its bases."""
    path = find_config(args.config)
    from ..training.config import load_config
    from ..training.given import parse_options
    from ..training.options import merge_options
    cfg = load_config(path)
    merge_options(cfg, parse_options(args.cfg_options))
    print(f'# {path}\n{cfg.pretty_text}')
    return 0
