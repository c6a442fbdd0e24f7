# SPDX-License-Identifier: Apache-2.0
"""One table per benchmark suite: everything about a data set is said here and nowhere else."""

import os
from typing import Dict, Union

from ...sites import nearest
from .custom import read_suite
from .elevater import ELEVATER
from .fgvc import FGVC
from .spec import CLIP_NORM, HALF_NORM, IMAGENET_NORM, Split, Suite, Task
from .vtab import VTAB

SUITES: Dict[str, Suite] = {s.name: s for s in (VTAB, FGVC, ELEVATER)}

__all__ = [
    'CLIP_NORM', 'ELEVATER', 'FGVC', 'HALF_NORM', 'IMAGENET_NORM', 'SUITES', 'Split', 'Suite', 'Task', 'VTAB',
    'get_suite', 'get_task'
]


def get_suite(name: Union[str, Suite]) -> Suite:
    """The suite of that name, or of that ``.json`` file (see :mod:`mmpetl.datasets.tables.custom`).

    Raises:
        ValueError: If there is none; the message names the nearest ones.
    """
    if isinstance(name, Suite):
        return name
    if name in SUITES:
        return SUITES[name]
    if str(name).endswith('.json'):
        if not os.path.isfile(os.path.expanduser(name)):
            raise ValueError(f'the suite file {name} does not exist: check the name, or give one of '
                             f'{", ".join(SUITES)}')
        return read_suite(name, SUITES)
    raise ValueError(f'unknown suite {name!r}' + nearest(name, SUITES) + ' (or the .json file of a suite of your own)')


def get_task(suite: Union[str, Suite], name: str) -> Task:
    """One task of a suite.

    Raises:
        ValueError: If the suite or the task is unknown; the message names the nearest ones.
    """
    suite = get_suite(suite)
    if name not in suite.tasks:
        raise ValueError(f'{suite.title} has no task {name!r}' + nearest(name, suite.tasks))
    return suite.tasks[name]
