# SPDX-License-Identifier: Apache-2.0
"""What a config trains on and is tested on, or what a folder holds: counts, sizes, lengths, unreadable files, files
that are in training and in test, and samples to look at."""

import copy
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from mmengine.config import Config

from ..datasets.collect import Collection
from ..datasets.contact_sheet import as_picture, spread
from ..datasets.how_to_get import and_get
from ..datasets.loading import LoadImage, read_bytes, split_member
from ..datasets.masks import look_at_masks, mask_path, reads_masks, refuse
from ..datasets.survey import Survey, Tick, across, extent, survey_pictures, survey_videos
from ..hooks.data_guard import HEADS
from ..registry import DATASETS
from .config import load_config
from .tasks import apply_task, find_dicts

LOADERS = {'train': 'train_dataloader', 'val': 'val_dataloader', 'test': 'test_dataloader'}
Samples = List[Tuple[np.ndarray, str]]


@dataclass
class DataReport:
    """What was found.

    Attributes:
        source: The config or folder.
        kind: 'picture' or 'video'.
        classes: Names of the classes, empty where the data have none.
        counts: Part -> class -> number of files.
        extent: Sizes and lengths, see :func:`mmpetl.datasets.survey.extent`.
        problems: What is wrong, one line each.
        unlabelled: Files without a class of their own, such as pictures with masks.
    """
    source: str
    kind: str = 'picture'
    classes: Sequence[str] = ()
    counts: Dict[str, Dict[int, int]] = field(default_factory=dict)
    extent: str = ''
    problems: List[str] = field(default_factory=list)
    unlabelled: int = 0

    def name_of(self, label: int) -> str:
        """Name of a class, or its number."""
        return self.classes[label] if 0 <= label < len(self.classes) else str(label)

    def fill(self, survey: Survey) -> None:
        """Take over what a survey found."""
        self.extent = extent(survey)
        self.problems += [f'unreadable: {line}' for line in survey.unreadable()]


def _pipeline(dataset: Any) -> List[Any]:
    while not hasattr(dataset, 'pipeline') and hasattr(dataset, 'dataset'):
        dataset = dataset.dataset
    return list(dataset.pipeline.transforms)


def _build(cfg: Config, loader: str) -> Any:
    """The data set of a loader; videos are not checked while it is built, as all are looked at afterwards."""
    settings = copy.deepcopy(cfg[loader]['dataset'])
    for videos in find_dicts(settings, 'mmpetl.VideoListDataset'):
        videos['check'] = 'none'
    dataset = DATASETS.build(settings)
    if hasattr(dataset, 'full_init'):
        dataset.full_init()
    return dataset


def _rows(dataset: Any) -> List[Dict[str, Any]]:
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def _file(row: Mapping[str, Any]) -> str:
    return str(row.get('img_path') or row.get('filename') or '')


def _label(row: Mapping[str, Any]) -> List[int]:
    found = row.get('gt_label', row.get('label'))
    return [] if found is None else [int(c) for c in np.atleast_1d(found)]


def check_config(path: str, decode: bool = True, jobs: int = 4, shown: int = 24,
                 tick: Optional[Tick] = None) -> Tuple[DataReport, Samples]:
    """Look at the data of a config.

    Args:
        path: The config, or the name of a shipped one.
        decode: Open every file; else only look whether it is there.
        jobs: Threads or processes that read.
        shown: Number of training samples to show, after the pipeline.
        tick: Called with (files done, files in all).

    Returns:
        The report, and the samples with a text for each.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If it has no data.
    """
    from mmengine.registry import init_default_scope
    cfg = apply_task(load_config(path), None)
    scope = cfg.get('default_scope') or 'mmpretrain'
    if scope == 'mmaction':
        import mmaction.datasets  # noqa: F401
    init_default_scope(scope)
    report = DataReport(path, 'video' if scope == 'mmaction' else 'picture')
    datasets: Dict[str, Any] = {}
    for part, loader in LOADERS.items():
        if not (cfg.get(loader) or {}).get('dataset'):
            continue
        if part == 'test' and 'val' in datasets and cfg[loader]['dataset'] == cfg[LOADERS['val']]['dataset']:
            continue  # looked at once, reported once
        try:
            datasets[part] = _build(cfg, loader)
        except (ValueError, OSError) as error:
            report.problems.append(f'{loader}: {" ".join(str(error).split())}')
    if not datasets and not report.problems:
        raise ValueError(f'{path} has no data: none of {", ".join(LOADERS.values())} has a dataset; '
                         'name a config that trains')
    rows = {part: _rows(dataset) for part, dataset in datasets.items()}
    for part, dataset in datasets.items():
        report.classes = report.classes or (getattr(dataset, 'metainfo', None) or {}).get('classes') or ()
        report.counts[part] = dict(Counter(label for row in rows[part] for label in _label(row)))
    report.unlabelled = sum(not _label(row) for found in rows.values() for row in found)
    _compare_head(report, cfg)
    _look_at_masks(report, datasets, rows, cfg, decode, jobs)
    files = {part: [_file(row) for row in found] for part, found in rows.items()}
    _survey(report, files, next((_loader_of(d) for d in datasets.values()), None), decode, jobs, tick)
    wrong = any(line.startswith('unreadable') for line in report.problems)
    return report, [] if wrong or 'train' not in datasets else _samples(report, datasets['train'], rows['train'], shown,
                                                                        cfg)


def _compare_head(report: DataReport, cfg: Config) -> None:
    """Whether the head has as many classes as the data."""
    key = next((k for k in HEADS if isinstance((cfg.get('model') or {}).get(k), dict)), '')
    outputs = cfg.model[key].get('num_classes') if key else None
    labels = [label for counts in report.counts.values() for label in counts]
    wanted = len(report.classes) or max(labels, default=-1) + 1
    if outputs and wanted and (outputs != wanted if report.classes else outputs < wanted):
        report.problems.append(f'model.{key}.num_classes={outputs}, but the data have {wanted} classes')


def _look_at_masks(report: DataReport, datasets: Mapping[str, Any], rows: Mapping[str, Sequence[Mapping[str, Any]]],
                   cfg: Config, decode: bool, jobs: int) -> None:
    """Masks of segmentation: each problem, and classes of which training has no pixel; without ``decode`` those that
    are missing."""
    head = (cfg.get('model') or {}).get('decode_head')
    head = head[-1] if isinstance(head, (list, tuple)) and head else head
    if not isinstance(head, dict) or not head.get('num_classes'):
        return
    ignored = head.get('ignore_index', 255)
    for part, dataset in datasets.items():
        reads, sizes = reads_masks(_pipeline(dataset))
        listed = [row for row in rows[part] if reads and mask_path(row)]
        if not decode:
            missing = [path for path in map(str, map(mask_path, listed)) if not os.path.isfile(path)]
            report.problems += [f'unreadable: {path} is missing{and_get(path)}' for path in missing]
            continue
        masks = look_at_masks(listed, head['num_classes'], ignored, jobs, sizes)
        report.problems += [f'unreadable: {problem}' for problem in masks.problems]
        if listed and part == 'train' and not masks.problems:
            try:
                line = refuse(masks, len(listed), f'{LOADERS[part]}.dataset', report.classes, head['num_classes'],
                              ignored)
            except ValueError as error:
                line = str(error)
            report.problems += [line] if line else []


def _loader_of(dataset: Any) -> Optional[LoadImage]:
    return next((t for t in _pipeline(dataset) if isinstance(t, LoadImage)), None)


def _survey(report: DataReport, files: Mapping[str, Sequence[str]], load: Optional[LoadImage], decode: bool, jobs: int,
            tick: Optional[Tick]) -> None:
    paths = [path for found in files.values() for path in found]
    if report.kind == 'video':
        survey = survey_videos(paths, 'open' if decode else 'exists', min(jobs, 2), tick)
    elif decode:
        survey = survey_pictures(paths, load and load.bands, load and load.window, jobs, tick)
        if not (load and load.window) and survey.window():
            low, high = survey.window()  # type: ignore[misc]
            report.problems.append(f'pictures of more than 8 bits hold numbers that fit no rule: set window=({low:g}, '
                                   f'{high:g}) in mmpetl.LoadImage')
    else:
        report.problems += [f'unreadable: {path} is missing{and_get(path)}' for path in dict.fromkeys(paths)
                            if not os.path.isfile(split_member(path)[0])]
        return
    report.fill(survey)
    pairs = across(files, survey)
    if pairs:
        report.problems.append(f'{len(pairs)} held-out {report.kind}s are byte for byte in training, first '
                               f'{pairs[0][1]} ({pairs[0][0]}): scores on them say nothing')


def _samples(report: DataReport, dataset: Any, rows: Sequence[Mapping[str, Any]], count: int, cfg: Config) -> Samples:
    """Training samples after the pipeline, RGB."""
    found = []
    labels = [(_label(row) or [-1])[0] for row in rows]
    for position in spread(labels, count):
        item = dataset[position]
        item = item[0] if isinstance(item, list) else item
        try:
            picture = as_picture(item['inputs'].numpy())
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            report.problems.append(f'the training pipeline gives no picture to show: {error}')
            return []
        name = os.path.basename(_file(rows[position]))
        # pictures are packed as BGR and turned by the model's preprocessor; clips are RGB
        bgr = report.kind == 'picture'
        found.append((picture[..., ::-1] if bgr else picture, f'{report.name_of(labels[position])}: {name}'))
    return found


def check_collection(found: Collection, survey: Survey, shown: int = 24) -> Tuple[DataReport, Samples]:
    """Look at a folder or list of one's own.

    Args:
        found: Its files.
        survey: Of all files.
        shown: Number of pictures to show.
    """
    report = DataReport(found.source, found.kind, found.classes)
    for part in sorted({item.part or 'all' for item in found.items}):
        items = [item for item in found.items if (item.part or 'all') == part]
        report.counts[part] = dict(Counter(item.label for item in items))
    report.fill(survey)
    report.problems += found.notes
    of = {found.full(item): item for item in found.items}
    for twins in survey.twins():
        items = [of[path] for path in twins]
        if len({i.label for i in items}) > 1 or len({i.part for i in items}) > 1:
            which = [f'{i.path} ({" ".join(filter(None, [i.part, found.classes[i.label]]))})' for i in items[:3]]
            report.problems.append(f'the same {found.kind}: {", ".join(which)}')
    window = survey.window()
    if window:
        report.problems.append(f'pictures of more than 8 bits hold numbers that fit no rule: they need window=('
                               f'{window[0]:g}, {window[1]:g}) in mmpetl.LoadImage, which data make writes')
    samples: Samples = []
    if found.kind == 'picture':
        load = LoadImage(window=window)
        good = [item for item in found.items if not survey.looks[found.full(item)].wrong]
        for position in spread([item.label for item in good], shown):
            picture = load.decode(read_bytes(found.full(good[position])))[..., ::-1]
            name = os.path.basename(good[position].path)
            samples.append((picture, f'{found.classes[good[position].label]}: {name}'))
    return report, samples
