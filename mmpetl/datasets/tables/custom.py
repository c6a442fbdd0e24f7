# SPDX-License-Identifier: Apache-2.0
"""A suite of one's own, described by a JSON file, in the file form of a published suite::

    {
      "title": "Drawings and digits",
      "form": "vtab",
      "root": "data/mine",
      "tasks": {
        "quickdraw": {"num_classes": 20, "group": "Drawings"},
        "digits":    {"num_classes": 10, "group": "Digits", "metric": "mean_per_class"}
      }
    }

``root`` is relative to the file. Lists, phases and normalisation are those of the form ('vtab', 'fgvc' or 'elevater').
``group``, ``metric``, ``folder``, ``images``, ``resize``, ``multi_label`` and ``classes_file`` of a task are optional.
"""

import os
from dataclasses import replace
from typing import Any, Dict, Mapping

from ...names import path_below, plain_name
from ...sites import nearest
from ...weights.reading import read_json
from .spec import Split, Suite, Task

METRICS = ('accuracy', 'mean_per_class', 'roc_auc', 'map11')
#: More classes than any data set has.
MAX_CLASSES = 10_000_000
_TASK_KEYS = ('num_classes', 'group', 'metric', 'folder', 'images', 'resize', 'multi_label', 'classes_file')
_KEYS = ('title', 'form', 'root', 'tasks')


def _task(name: str, row: Any, path: str, pattern: Task) -> Task:
    where = f'{path}, task {name!r}'
    plain_name(name, f'{path}: task')
    if not isinstance(row, dict):
        raise ValueError(f'{where}: expected an object with num_classes, got {row!r}')
    for key in row:
        if key not in _TASK_KEYS:
            raise ValueError(f'{where}: {key!r} is no option' + nearest(key, _TASK_KEYS))
    for key in ('folder', 'images', 'classes_file'):
        if row.get(key):
            path_below(row[key], f'{where}: {key}')
    for key, kind in (('group', str), ('resize', str), ('metric', str), ('multi_label', bool)):
        if not isinstance(row.get(key, kind()), kind):
            raise ValueError(f'{where}: {key} must be a {kind.__name__}, got {row[key]!r:.80}')
    classes = row.get('num_classes')
    if type(classes) is not int or not 2 <= classes <= MAX_CLASSES:
        raise ValueError(f'{where}: num_classes must be a whole number >= 2, got {classes!r:.80}')
    if row.get('metric', 'accuracy') not in METRICS:
        raise ValueError(f'{where}: unknown metric {row["metric"]!r}' + nearest(row['metric'], METRICS))
    splits = {split: Split(spec.files) for split, spec in pattern.splits.items()}
    settings: Dict[str, Any] = dict(metric='accuracy', group='', folder='', multi_label=False, resize=pattern.resize,
                                    classes_file='classes.txt', images='')
    return Task(suite=path, name=name, splits=splits, **{**settings, **row})


def read_suite(path: str, suites: Mapping[str, Suite]) -> Suite:
    """Read a suite from a JSON file; its name is the file's absolute path.

    Args:
        path: The file.
        suites: The published suites, whose forms may be used.

    Raises:
        ValueError: Naming the file and the entry that is wrong.
    """
    path = os.path.abspath(os.path.expanduser(path))
    data = read_json(path)
    if not isinstance(data, dict) or not isinstance(data.get('tasks'), dict) or not data['tasks']:
        raise ValueError(f"{path}: a suite needs an object 'tasks' with at least one task")
    for key in data:
        if key not in _KEYS:
            raise ValueError(f'{path}: {key!r} is no option' + nearest(key, _KEYS))
    for key in ('title', 'root', 'form'):
        if not isinstance(data.get(key, ''), str):
            raise ValueError(f'{path}: {key} must be text, got {data[key]!r:.80}')
    form = data.get('form', 'vtab')
    if form not in suites:
        raise ValueError(f'{path}: unknown form {form!r}' + nearest(form, suites))
    base = suites[form]
    # A task of the form whose files have the plain names.
    pattern = base.tasks.get('caltech-101') or next(iter(base.tasks.values()))
    tasks = {name: _task(name, row, path, pattern) for name, row in data['tasks'].items()}
    groups = tuple(dict.fromkeys(t.group for t in tasks.values() if t.group))
    if groups and not all(t.group for t in tasks.values()):
        raise ValueError(f'{path}: give every task a group, or none')
    title = data.get('title', os.path.basename(path)[:-len('.json')])
    root = os.path.join(os.path.dirname(path), os.path.expanduser(data.get('root', ''))).rstrip(os.sep)
    return replace(base, name=path, title=title, tasks=tasks, groups=groups, root=root,
                   hint='lay the files out as the form does, see docs/image_benchmarks.md')
