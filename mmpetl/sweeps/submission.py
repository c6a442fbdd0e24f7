# SPDX-License-Identifier: Apache-2.0
"""``mmpetl submit DIR``: the ELEVATER leaderboard's submission from a sweep's final runs.

Format: ``all_predictions.zip`` with one ``all_predictions.json``, ``{"data": [one entry per data set]}``. An entry
holds the probabilities of every test image in the order of the list, rounded to six decimals, for each seed of the
few-shot subset, and the parameter counts. A sweep over a suite of one's own in ELEVATER's form gives the same file, for
a leaderboard of one's own.
"""

import json
import os
import statistics
import zipfile
from typing import Any, BinaryIO, Dict, Iterable, List, Mapping, Optional, Sequence

import numpy as np

from ..datasets import Elevater
from ..datasets.tables import ELEVATER, Suite, get_suite, get_task
from ..weights.io import atomic_write
from ..weights.reading import read_arrays
from .plan import SweepPlan, Unit, read_plan, units
from .trial import OK

SAME = ('model_name', 'num_params', 'num_visual_params', 'num_backbone_params', 'n_shot')


def softmax_rows(scores: np.ndarray) -> np.ndarray:
    """Scores (N, C) that are probabilities -> the same in float64 with rows of sum 1 and six decimals."""
    scores = np.asarray(scores, np.float64)
    return np.round(scores / scores.sum(1, keepdims=True), 6)


def entry_of(work_dir: str, task_units: Sequence[Unit], model_name: str, sizes: Mapping[str, int]) -> Dict[str, Any]:
    """The entry of one data set.

    Args:
        work_dir: Folder of the sweep.
        task_units: The data set's units, one per few-shot seed.
        model_name: Name on the leaderboard.
        sizes: ``num_params``, ``num_visual_params`` and ``num_backbone_params``.

    Raises:
        ValueError: If a run or its scores are missing.
    """
    plan, name = task_units[0].plan, task_units[0].task
    predictions, seeds, trainable = [], [], []
    for unit in sorted(task_units, key=lambda u: u.fold.get('shot_seed', 0)):
        finals = unit.finals()
        result = unit.result(finals[0]) if finals else None
        if result is None or result.status != OK:
            raise ValueError(
                f'{name} {unit.fold or ""}: the final run is missing: begin or finish it by mmpetl sweep')
        path = os.path.join(unit.folder(finals[0]), 'scores.npz')
        if not os.path.isfile(path):
            raise ValueError(
                f'{path} is missing: the run wrote no predictions; delete its result.json and run the sweep again')
        scores = read_arrays(path, ['scores']).get('scores', np.empty(0))
        if scores.ndim != 2 or scores.dtype.kind not in 'fiu':
            raise ValueError(f'{path} holds no table of scores; delete its result.json and run the sweep again')
        multi = get_task(plan['suite'], name).multi_label
        predictions.append((np.round(scores.astype(np.float64), 6) if multi else softmax_rows(scores)).tolist())
        seeds.append(int(unit.fold.get('shot_seed', 0)))
        trainable.append(result.params or 0)
    return dict(
        model_name=model_name,
        dataset_name=name,
        num_trainable_params=float(statistics.fmean(trainable)),
        **sizes,
        n_shot=shots_of(plan),
        rnd_seeds=seeds,
        predictions=predictions)


def shots_of(plan: SweepPlan) -> int:
    """Images per class of a sweep: -1 for all images, 0 for zero-shot.

    Raises:
        ValueError: If the plan's config cannot be read.
    """
    from mmengine.config import Config
    cfg = Config.fromfile(plan['config'])
    if not cfg.get('train_dataloader'):
        return 0
    return int(plan['cfg_options'].get('task.shots', cfg.task.get('shots', -1)))


def validate(entries: Sequence[Mapping[str, Any]], complete: bool = True, suite: Suite = ELEVATER,
             counts: Optional[Mapping[str, int]] = None) -> None:
    """Check a submission as the leaderboard does, before anything is written.

    Args:
        entries: Entries of all data sets.
        complete: Whether all data sets of the suite must be there.
        suite: ELEVATER, or a suite of one's own in its form.
        counts: Test images of each data set; default those that the suite says.

    Raises:
        ValueError: Naming the data set and what is wrong with it.
    """
    names = [e['dataset_name'] for e in entries]
    lacking = [n for n in suite.tasks if n not in names]
    if complete and lacking:
        raise ValueError(f'{len(lacking)} of {len(suite.tasks)} data sets are missing: {", ".join(lacking)} '
                         '(--partial writes the others anyway)')
    for key in SAME:
        if len({json.dumps(e[key]) for e in entries}) > 1:
            raise ValueError(f'the entries differ in {key!r}')
    for entry in entries:
        task = get_task(suite, entry['dataset_name'])
        predictions = np.asarray(entry['predictions'], np.float64)
        images = counts[task.name] if counts else task.splits['test'].count
        want = (len(entry['rnd_seeds']), images, task.num_classes)
        if predictions.shape != want:
            raise ValueError(f'{task.name}: predictions are {predictions.shape}, the leaderboard wants {want} '
                             '(seeds, test images, classes)')
        if not np.isfinite(predictions).all() or predictions.min() < 0 or predictions.max() > 1:
            raise ValueError(f'{task.name}: predictions must be probabilities between 0 and 1')
        if not task.multi_label and not np.allclose(predictions.sum(-1), 1, rtol=1e-3, atol=0):
            raise ValueError(f'{task.name}: the probabilities of an image must sum to 1')
        if len(set(entry['rnd_seeds'])) != len(entry['rnd_seeds']):
            raise ValueError(f'{task.name}: a seed occurs twice')


def _sizes(plan: SweepPlan) -> Dict[str, int]:
    """Parameter counts of the whole model, its image tower (with projection) and its backbone, without method and
    head."""
    import torch
    from mmengine.config import Config
    from mmengine.registry import init_default_scope
    from mmpretrain.registry import MODELS
    cfg = Config.fromfile(plan['config'])
    init_default_scope('mmpretrain')
    model_cfg = cfg.model.to_dict()
    model_cfg.pop('head', None)
    with torch.device('meta'):
        model = MODELS.build(model_cfg)
    base = sum(p.numel() for n, p in model.backbone.named_parameters() if not n.startswith('petl.'))
    neck = sum(p.numel() for p in model.neck.parameters()) if model.with_neck else 0
    classes = statistics.fmean(t.num_classes for t in get_suite(plan['suite']).tasks.values())
    heads = classes * ((cfg.model.head.get('in_channels') or 0) + 1)
    return dict(
        num_params=base + neck + round(heads), num_visual_params=base + neck, num_backbone_params=base + neck)


def write_submission(entries: Sequence[Mapping[str, Any]], path: str) -> None:
    """Write the zip file."""
    data = json.dumps(dict(data=list(entries))).encode()

    def write(file: BinaryIO) -> None:
        with zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('all_predictions.json', data)

    atomic_write(path, write)


def submission(work_dir: str, model_name: Optional[str] = None, sizes: Optional[Mapping[str, int]] = None,
               complete: bool = True) -> List[Dict[str, Any]]:
    """Entries of a sweep, validated.

    Args:
        work_dir: Folder of an ELEVATER sweep.
        model_name: Name on the leaderboard; default the sweep's.
        sizes: Parameter counts of the base; default counted from the config.
        complete: Whether all data sets of the suite must be there.

    Raises:
        ValueError: If it is another suite's sweep, something is missing, or the entries are not valid.
    """
    plan = read_plan(work_dir)
    suite = get_suite(plan['suite'])
    if suite.form != 'elevater':
        raise ValueError(
            f'{work_dir} is a sweep over {suite.title}: only ELEVATER, and suites in its form, have a submission: '
            'name the folder of such a sweep')
    by_task: Dict[str, List[Unit]] = {}
    for unit in units(plan, work_dir):
        by_task.setdefault(unit.task, []).append(unit)
    counts = dict(sizes or _sizes(plan))
    entries = [entry_of(work_dir, mine, model_name or plan['name'], counts) for mine in by_task.values()]
    validate(entries, complete, suite, _listed(plan, by_task) if suite.name != suite.form else None)
    return entries


def _listed(plan: SweepPlan, tasks: Iterable[str]) -> Dict[str, int]:
    """Test images of each task by its list file; for suites of one's own, whose numbers no table says."""
    return {name: len(Elevater(name, 'test', suite=plan['suite'], data_root=plan.get('root') or '')) for name in tasks}
