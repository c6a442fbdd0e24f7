"""One table per benchmark suite: everything about a data set is said here and nowhere else."""

from typing import Dict, Union

from ...sites import nearest
from .elevater import ELEVATER
from .fgvc import FGVC
from .spec import CLIP_NORM, HALF_NORM, IMAGENET_NORM, Split, Suite, Task
from .vtab import VTAB

SUITES: Dict[str, Suite] = {s.name: s for s in (VTAB, FGVC, ELEVATER)}

__all__ = ['CLIP_NORM', 'ELEVATER', 'FGVC', 'HALF_NORM', 'IMAGENET_NORM', 'SUITES', 'Split', 'Suite', 'Task', 'VTAB', 'get_suite',
           'get_task']


def get_suite(name: Union[str, Suite]) -> Suite:
    """The suite of that name.

    Raises:
        ValueError: If there is none; the message names the nearest ones.
    """
    if isinstance(name, Suite):
        return name
    if name not in SUITES:
        raise ValueError(f'unknown suite {name!r}' + nearest(name, SUITES))
    return SUITES[name]


def get_task(suite: Union[str, Suite], name: str) -> Task:
    """One task of a suite.

    Raises:
        ValueError: If the suite or the task is unknown; the message names the nearest ones.
    """
    suite = get_suite(suite)
    if name not in suite.tasks:
        raise ValueError(f'{suite.title} has no task {name!r}' + nearest(name, suite.tasks))
    return suite.tasks[name]
