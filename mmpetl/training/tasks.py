# SPDX-License-Identifier: Apache-2.0
"""Choose a data set of a suite in one place: ``cfg.task`` decides lists, classes, metric, resizing and the method's
per-task settings.

A config names a suite once (``configs/_base_/datasets/<suite>.py``) and works as it stands for the task written there.
Any other task is ``--cfg-options task.name=svhn``; :func:`apply_task` then rewrites everything that depends on it. The
keys of ``cfg.task``:

=========  ==========================================================================================
suite      'vtab', 'fgvc', 'elevater', or the .json file of a suite of one's own
name       key of the task, see :mod:`mmpetl.datasets.tables`
root       folder of the suite's data
phase      'search' (train on the part, evaluate on the validation part) or 'final' (train on all, evaluate on test)
shots      images per class, -1 for all (ELEVATER)
shot_seed  seed of the few-shot subset (ELEVATER)
=========  ==========================================================================================

``cfg.per_task`` holds published settings that differ from task to task::

    per_task = dict(columns=['model.backbone.petl.0.scale'], rows=dict(cifar=[0.1], svhn=[10]))
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Optional

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log

from ..datasets.tables import SUITES, Suite, Task, get_suite, get_task
from ..sites import nearest

METRICS = {'accuracy': dict(type='mmpretrain.Accuracy', topk=(1, )), 'mean_per_class': dict(type='mmpetl.MeanPerClass'),
           'roc_auc': dict(type='mmpetl.ROCAUC'), 'map11': dict(type='mmpetl.ElevenPointAP')}
LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
KEYS = ('suite', 'name', 'root', 'phase', 'shots', 'shot_seed')


def find_dicts(node: Any, kind: str) -> Iterator[Dict[str, Any]]:
    """Every dict of ``type=kind`` in a tree of dicts and lists; the scope before the dot counts only where both have
    one."""
    if isinstance(node, dict):
        found = node.get('type')
        if isinstance(found, str) and (found == kind or
                                       ('.' in found) != ('.' in kind) and found.split('.')[-1] == kind.split('.')[-1]):
            yield node
        for child in node.values():
            yield from find_dicts(child, kind)
    elif isinstance(node, (list, tuple)):
        for child in node:
            yield from find_dicts(child, kind)


@dataclass(frozen=True)
class Choice:
    """What ``cfg.task`` asks for, found out once; :func:`apply_task` writes it into the config."""
    suite: Suite
    task: Task
    asked: Mapping[str, Any]  # cfg.task, completed
    datasets: Mapping[str, Mapping[str, Any]]  # loader -> entries of its datasets
    base: Optional[Config]  # the suite's base file, where the config holds data of another suite
    row: Mapping[str, Any]  # the task's row of cfg.per_task, config key -> value


def choose(cfg: Config) -> Optional[Choice]:
    """What ``cfg.task`` asks for; None for a config without one. The config is not changed.

    Raises:
        ValueError: If suite, task, phase or option is unknown, or the config does not fit the suite.
    """
    if not cfg.get('task'):
        return None
    if not isinstance(cfg.task, (str, dict)):
        raise ValueError(f"task={cfg.task!r:.80}: give dict(suite='vtab', name='cifar') or 'vtab/cifar'")
    asked = dict(zip(('suite', 'name'), cfg.task.rsplit('/', 1))) if isinstance(cfg.task, str) else dict(cfg.task)
    for key in asked:
        if key not in KEYS:
            raise ValueError(f'task.{key} is no option' + nearest(key, KEYS))
    if 'suite' not in asked or 'name' not in asked:
        raise ValueError(
            "task needs 'suite' and 'name', for example task=dict(suite='vtab', name='cifar') or task='vtab/cifar'")
    suite = get_suite(asked['suite'])
    task, base = get_task(suite, asked['name']), _other_base(cfg, suite)
    asked = asked if base is None else _asked_of(base, asked)
    if suite.name != suite.form and _is_default(asked.get('root')):
        asked['root'] = suite.root
    phase = asked.get('phase', 'final')
    if phase not in suite.phases:
        raise ValueError(f'task.phase={phase!r} is none of {", ".join(suite.phases)}')
    entries = dict(task=task.name, suite=suite.name if suite.name != suite.form else None, data_root=asked.get('root'),
                   **{key: asked.get(key) for key in ('shots', 'shot_seed') if suite.form == 'elevater'})
    entries = {key: value for key, value in entries.items() if value is not None and value != ''}
    train, evaluated = suite.phases[phase]
    datasets = {name: dict(entries, split=s) for name, s in zip(LOADERS, (train, evaluated, evaluated))}
    return Choice(suite, task, asked, datasets, base, _row(cfg, task.name))


def _row(cfg: Config, task: str) -> Mapping[str, Any]:
    """A task's row of ``cfg.per_task``."""
    table: Optional[Mapping[str, Any]] = cfg.get('per_task')
    if not table:
        return {}
    if set(table) != {'columns', 'rows'}:
        raise ValueError("per_task needs exactly 'columns' (config keys) and 'rows' (task -> values)")
    row = table['rows'].get(task)
    if row is None:
        print_log(f'per_task has no row for {task!r}: the config stands as written', 'current')
        return {}
    if len(row) != len(table['columns']):
        raise ValueError(f"per_task.rows.{task} has {len(row)} values for {len(table['columns'])} columns")
    return dict(zip(table['columns'], row))


def prepare_suite(cfg: Config, suite: Suite) -> None:
    """Give a config the data of a suite where it has those of another; nothing else depends on the suite.

    Raises:
        ValueError: If the config has no ``task``, or no base file of that suite lies beside it.
    """
    if not cfg.get('task'):
        raise ValueError(
            f"the config has no 'task': begin it with _base_/datasets/{suite.form}.py, or another suite's base")
    base = _other_base(cfg, suite)
    if base is not None:
        _take_data(cfg, base)
        cfg.task = ConfigDict(_asked_of(base, cfg.task))


def _other_base(cfg: Config, suite: Suite) -> Optional[Config]:
    """The suite's base file beside a config that holds data of another; None where it holds the suite's own."""
    if list(find_dicts([cfg.get(name) for name in LOADERS], suite.dataset)):
        return None
    folders = Path(cfg.filename).resolve().parents if cfg.filename else ()
    found = [path for folder in folders if (path := folder / f'_base_/datasets/{suite.form}.py').is_file()]
    if not found:
        raise ValueError(f'the config has no data of the suite {suite.name!r}, and no folder above it holds '
                         f'_base_/datasets/{suite.form}.py: begin the config with that base')
    return Config.fromfile(str(found[0]))


def _asked_of(base: Config, asked: Mapping[str, Any]) -> Dict[str, Any]:
    # The root written for the config's own suite is not this suite's.
    return {**base.task, **{key: value for key, value in asked.items() if key != 'root' or not _is_default(value)}}


def _is_default(root: Optional[str]) -> bool:
    """Whether a root is unset or the one that a base file writes for a published suite."""
    return not root or root in [s.root for s in SUITES.values()]


def _take_data(cfg: Config, base: Config) -> None:
    """Data and normalisation of a base file; batch sizes and workers stay."""
    for name in LOADERS:
        if cfg.get(name) is not None:
            own = ('batch_size', 'num_workers', 'persistent_workers', 'drop_last')
            cfg[name] = ConfigDict({**base[name], **{key: cfg[name][key] for key in own if key in cfg[name]}})
    for name in ('val_evaluator', 'test_evaluator', 'data_preprocessor'):
        cfg[name] = base[name]


def apply_task(cfg: Config, cfg_options: Optional[Mapping[str, Any]] = None) -> Config:
    """Rewrite a config, its options merged, for the task that ``cfg.task`` names. Twice changes nothing.

    Args:
        cfg: The config, changed in place.
        cfg_options: What the user set by hand; merged once more at the end, so that it wins over the task's published
            settings.

    Returns:
        ``cfg``.

    Raises:
        ValueError: If suite, task, phase or option is unknown, or the config does not fit the suite.
    """
    choice = choose(cfg)
    if choice is None:
        return cfg
    if choice.base is not None:
        _take_data(cfg, choice.base)
    cfg.task = ConfigDict(choice.asked)
    _set_data(cfg, choice)
    _set_model(cfg, choice.task)
    cfg.merge_from_dict(choice.row)
    cfg.merge_from_dict(
        {k: v for k, v in (cfg_options or {}).items() if k.split('.')[0] not in ('task', 'work_dir')})
    # After the options, which may name a file per task.
    for head in _heads(cfg.get('model')):
        if isinstance(head.get('text_features'), str):
            head['text_features'] = head['text_features'].replace('{task}', choice.task.name)
    # Runs of several tasks with one config must not overwrite each other.
    stem, work_dir = Path(cfg.filename).stem if cfg.filename else None, cfg.get('work_dir')
    if stem and (work_dir is None or os.path.normpath(work_dir) == os.path.join('work_dirs', stem)):
        cfg.work_dir = os.path.join('work_dirs', stem, choice.task.name)
    return cfg


def _set_data(cfg: Config, choice: Choice) -> None:
    for name, entries in choice.datasets.items():
        datasets = list(find_dicts(cfg.get(name), choice.suite.dataset))
        if cfg.get(name) is not None and not datasets:
            raise ValueError(f'{name} holds no dataset of type {choice.suite.dataset!r}, which '
                             f'task.suite={choice.suite.name!r} needs')
        for dataset in datasets:
            dataset.update(entries)
            if choice.task.resize == 'squash':
                dataset['pipeline'] = squash(dataset['pipeline'])
    for name in ('val_evaluator', 'test_evaluator'):
        if cfg.get(name) is not None:
            metrics = cfg[name].get('metrics', [cfg[name]]) if isinstance(cfg[name], dict) else cfg[name]
            dumps = [m for m in (metrics if isinstance(metrics, (list, tuple)) else [metrics])
                     if str(m.get('type')).split('.')[-1] in ('DumpResults', 'DumpScores')]
            cfg[name] = [ConfigDict(METRICS[choice.task.metric]), *dumps]


def squash(pipeline: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """The pipeline with ``ResizeEdge`` and ``CenterCrop`` replaced by one resize to the crop's size, aspect ignored."""
    crop = next(find_dicts(pipeline, 'CenterCrop'), None)
    edge = next(find_dicts(pipeline, 'ResizeEdge'), None)
    if crop is None or edge is None:
        return pipeline
    size = crop['crop_size']
    resize = {key: value for key, value in edge.items() if key not in ('type', 'scale', 'edge')}
    resize.update(type='mmpretrain.Resize', scale=(size, size) if isinstance(size, int) else tuple(size))
    return [resize if t is edge else t for t in pipeline if t is not crop]


def _heads(model: Any) -> Iterator[Dict[str, Any]]:
    """The classification heads of a model config."""
    if isinstance(model, dict):
        head = model.get('head')
        if isinstance(head, dict):
            yield head
        yield from _heads(model.get('model', model.get('module')))


def _set_model(cfg: Config, spec: Task) -> None:
    for head in _heads(cfg.get('model')):
        head['num_classes'] = spec.num_classes
        kind = str(head.get('type')).split('.')[-1]
        if spec.multi_label and kind != 'ZeroShotHead':
            if kind not in ('FeatureHead', 'LinearClsHead'):
                raise ValueError(f"{spec.name} has several labels per image: the head must be 'mmpetl.FeatureHead', "
                                 f"not {head.get('type')!r}")
            # FeatureHead is LinearClsHead with options. The loss is the mean over images and classes; mmpretrain's sums
            # over the classes.
            head.update(type='mmpetl.FeatureHead', multi_label=True,
                        loss=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1 / spec.num_classes))
    for owner in (cfg, cfg.get('model') or {}):
        if isinstance(owner.get('data_preprocessor'), dict):
            owner['data_preprocessor']['num_classes'] = spec.num_classes
