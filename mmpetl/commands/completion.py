# SPDX-License-Identifier: Apache-2.0
"""``mmpetl completion SHELL``: a script that completes commands, options, and names of configs."""

import argparse
from typing import Any, List

from ..recipes import recipes

SHELLS = ('bash', 'zsh', 'fish', 'tcsh')


def add_parser(subparsers: Any) -> None:
    """Add ``completion``."""
    parser = subparsers.add_parser('completion', help='tab completion for a shell',
                                   description='Prints a script; your shell reads it from its completion folder.')
    parser.add_argument('shell', choices=SHELLS)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the script.

    Raises:
        ValueError: If the library that writes it is not installed.
    """
    try:
        import shtab
    except ImportError:
        raise ValueError('completion needs the package shtab: pip install shtab') from None
    from .main import build_parser
    parser = build_parser('*')
    for command in _commands(parser):
        for action in command._actions:
            if action.dest in ('config', 'configs') and not action.option_strings:
                action.complete = {  # type: ignore[attr-defined]
                    'bash': '_mmpetl_configs', 'zsh': '_mmpetl_configs', 'fish': '(_mmpetl_configs)', 'tcsh': 'f'}
            elif action.dest in ('checkpoint', 'adapter', 'file', 'files', 'path'):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    names = ' '.join(recipes())
    print(shtab.complete(parser, shell=args.shell, preamble={
        'bash': f'_mmpetl_configs() {{ compgen -W "{names}" -- "$1"; compgen -f -X "!*.py" -- "$1"; }}',
        'zsh': f'_mmpetl_configs() {{ compadd -- {names}; _files -g "*.py"; }}',
        'fish': f'function _mmpetl_configs; string split " " "{names}"; __fish_complete_suffix .py; end'}))
    return 0


def _commands(parser: argparse.ArgumentParser) -> List[argparse.ArgumentParser]:
    """All parsers below one, its own included."""
    found = [parser]
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found += [each for child in action.choices.values() for each in _commands(child)]
    return found
