# SPDX-License-Identifier: Apache-2.0
"""The command that gets data which are not there: every message about missing data names it."""

import os
import shlex
from typing import Dict, Sequence, Tuple

from ..names import command_here, printable
from .downloads import DATA, Data
from .tables import ELEVATER, FGVC, SUITES

#: Folders of data that the project makes itself -> the command.
MADE: Dict[str, str] = {
    'quickdraw20': 'mmpetl fetch quickdraw20',
    'digits10': 'mmpetl fetch digits10',
    'small_suite': 'mmpetl fetch small-suite',
    'motion6': 'python tools/prepare_motion_clips.py',
    'scenes6': 'python tools/prepare_scenes.py',
}
#: Usual folder of a data set -> its name.
_FOLDERS: Dict[str, str] = {os.path.basename(data.root): name for name, data in DATA.items()
                            if '/' not in name and data.root != '~'}
_SUITES = {os.path.basename(suite.root): suite.name for suite in (FGVC, ELEVATER)}


def data_of(path: str) -> Tuple[str, str]:
    """(name for ``mmpetl fetch``, its folder) of the data set in whose usual folder (``hmdb51``, ``fgvc`` ...) a path
    lies; ('', '') where it lies in none."""
    parts = os.path.abspath(os.path.expanduser(path)).split(os.sep)
    for at in range(len(parts) - 1, 0, -1):
        root = os.sep.join(parts[:at + 1])
        if parts[at] in _FOLDERS or parts[at] in MADE:
            return _FOLDERS.get(parts[at], parts[at]), root
        if parts[at] in _SUITES:
            return _task_of(_SUITES[parts[at]], parts[at + 1:]), root
    return '', ''


def _task_of(suite: str, inside: Sequence[str]) -> str:
    """Name of the task whose folder leads the path ``inside`` a suite's folder; that of the whole suite else."""
    below = '/'.join(inside) + '/'
    for name, task in SUITES[suite].tasks.items():
        if any(below.startswith(f'{folder}/') for folder in (task.directory, *task.aliases)):
            return f'{suite}/{name}'
    return suite


def how_to_get(path: str, name: str = '', root: str = '') -> str:
    """``"'mmpetl fetch NAME' gets it"``, or that it prints the steps; empty for data of the user's own.

    Args:
        path: The file or folder that is missing.
        name: Name of the data set for ``mmpetl fetch``, where it is known; else the path tells it.
        root: Folder of the data set, where it is known.
    """
    if name not in DATA:
        name, root = data_of(path)
    if name in MADE:
        return f"'{command_here(MADE[name])}' gets it"
    if not name:
        return ''
    data = DATA.get(name)
    usual = data.root if data else SUITES[name].root
    command = f'mmpetl fetch {name}'
    if root and os.path.abspath(root) != os.path.abspath(usual):
        command += f' --root {shlex.quote(printable(root))}'
    return f"'{command}' {_does(data) if data else 'gets it, or prints the steps'}"


def and_get(path: str, name: str = '', root: str = '') -> str:
    """:func:`how_to_get` as the end of a sentence, after a semicolon; empty where there is no such command."""
    command = how_to_get(path, name, root)
    return f'; {command}' if command else ''


def _does(data: Data) -> str:
    if not data.files:
        return 'prints the steps'
    return 'gets it, and prints the steps that remain' if data.steps else 'gets it'
