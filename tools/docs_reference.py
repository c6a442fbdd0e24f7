# SPDX-License-Identifier: Apache-2.0
"""Reference pages of the site that follow from what mmpetl registers and parses: types of configs, the command line.

    pip install -e . -r requirements/docs.txt
    mkdocs build --strict
"""

import argparse
import inspect
import os
import re
from collections.abc import Iterator
from typing import Any

from mkdocs.structure.files import File, Files

#: Columns of the printed help.
WIDTH = 82
STYLE = '.md-typeset td:first-child code { white-space: nowrap; word-break: normal; }\n'
# what a config writes each of them into
PLACES = {
    'METHODS': 'Methods: `backbone.petl=[dict(type=...)]`',
    'MODELS': 'Backbones, heads and necks: `model`',
    'DATASETS': 'Data sets: `train_dataloader.dataset`',
    'TRANSFORMS': 'Transforms: `pipeline`',
    'METRICS': 'Metrics: `val_evaluator`, `test_evaluator`',
    'HOOKS': 'Hooks: `custom_hooks`, `default_hooks`',
    'LOOPS': 'Loops: `train_cfg`',
    'OPTIM_WRAPPERS': 'Optimizer wrappers: `optim_wrapper`',
    'OPTIM_WRAPPER_CONSTRUCTORS': 'Constructors of optimizers: `optim_wrapper.constructor`',
    'PARAM_SCHEDULERS': 'Schedules: `param_scheduler`',
    'STRATEGIES': 'Several GPUs: `strategy`',
    'FUNCTIONS': 'Functions: `strategy`',
}


def registered() -> dict[str, dict[str, Any]]:
    """Registry -> name -> class or function, for what mmpetl itself registers."""
    from mmengine.registry import Registry

    from mmpetl import registry
    found: dict[str, dict[str, Any]] = {}
    for key, each in vars(registry).items():
        if isinstance(each, Registry) and not key.startswith('ROOT_'):
            each.import_from_location()
            found[key] = {name: item for name, item in sorted(each.module_dict.items())
                          if item.__module__.startswith('mmpetl')}
    return {key: items for key, items in found.items() if items}


def first_line(text: str) -> str:
    """The first sentence of a docstring, on one line, without Sphinx' roles."""
    head = ' '.join((text or '').strip().split('\n\n')[0].split())
    return re.sub(r':\w+:`~?([^`]*)`', r'`\1`', head).replace('|', '\\|')


def types_page() -> str:
    """Every name that a config may write behind ``type=``, with what it is and a link to its arguments."""
    lines = ['# Types for configs\n\nEvery name that mmpetl registers, as a config writes it: '
             "`type='mmpetl.NAME'`; in `petl` the name alone.\n"]
    found = registered()
    for key, title in PLACES.items():
        lines.append(f'\n## {title}\n\n| type | what it is |\n|---|---|\n')
        for name, item in found[key].items():
            built_here = item.__module__ == 'mmpetl.backbones'
            label = f'`{name}`' if built_here else f'[`{name}`][{item.__module__}.{item.__name__}]'
            lines.append(f'| {label} | {first_line(item.__doc__)} |\n')
        if key == 'MODELS':
            arguments = _arguments(found[key]['TIMM'])
            lines.append(f'\nArguments of all backbones:\n\n```text\n{arguments}\n```\n')
    return ''.join(lines)


def _arguments(item: Any) -> str:
    text = inspect.getdoc(item) or ''
    return inspect.cleandoc(text.split('Args:\n')[1])


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """The parsers below one, in order, those of actions such as ``mmpetl data make`` included."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield child
                yield from parsers(child)


def commands_page() -> str:
    """``--help`` of every command."""
    from mmpetl.commands.main import build_parser
    columns, os.environ['COLUMNS'] = os.environ.get('COLUMNS'), str(WIDTH)
    try:
        parts = [f'# The command line\n\n```text\n{build_parser().format_help()}```\n']
        parts += [f'\n## {each.prog}\n\n```text\n{each.format_help()}```\n' for each in parsers(build_parser('*'))]
    finally:
        os.environ.pop('COLUMNS')
        if columns is not None:
            os.environ['COLUMNS'] = columns
    return ''.join(parts)


def on_files(files: Files, config: Any) -> Files:
    """Add both pages and the site's style."""
    for name, text in (('api/types.md', types_page()), ('api/commands.md', commands_page()), ('api/site.css', STYLE)):
        files.append(File.generated(config, name, content=text))
    return files
