# SPDX-License-Identifier: Apache-2.0
"""Data, classes and head are compared before the first step, not by a loss that reads past its end."""

import os
from typing import Any, Iterator, List, Optional, Tuple

import numpy as np

from ..tuning import unwrap

HEADS = ('head', 'cls_head', 'decode_head')


def compare_data(runner: Any) -> None:
    """Compare the head with the labels and class names of the training and validation data.

    Heads without ``num_classes``, and datasets that tell neither classes nor labels, are left alone.

    Raises:
        ValueError: Naming the file, the line where it can be found, the label, and the key to change.
    """
    model = unwrap(runner.model)
    key, count = next(((f'model.{name}.num_classes', getattr(getattr(model, name), 'num_classes', None))
                       for name in HEADS if getattr(model, name, None) is not None), ('', None))
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        return
    seen: Optional[Tuple[str, List[str]]] = None
    for name in ('train', 'val'):
        loop = getattr(runner, f'_{name}_loop', None)
        dataset = getattr(getattr(loop, 'dataloader', None), 'dataset', None)
        for where, part in _parts(dataset, f'{name}_dataloader.dataset'):
            classes = _classes(part)
            if classes:
                _compare_classes(where, part, classes, key, count)
                if seen and seen[1] != classes:
                    odd = next(i for i, (a, b) in enumerate(zip(seen[1], classes)) if a != b)
                    raise ValueError(f'{where} ({_source(part)}) calls class {odd} {classes[odd]!r}, {seen[0]} calls '
                                     f'it {seen[1][odd]!r}: give both the same classes, in the same order')
                seen = seen or (where, classes)
            _compare_labels(where, part, key, count)


def _parts(dataset: Any, where: str) -> Iterator[Tuple[str, Any]]:
    """(config key, dataset) of the innermost datasets below wrappers."""
    if hasattr(dataset, 'datasets'):
        for number, inner in enumerate(dataset.datasets):
            yield from _parts(inner, f'{where}.datasets.{number}')
    elif hasattr(dataset, 'dataset'):
        yield from _parts(dataset.dataset, f'{where}.dataset')
    elif dataset is not None:
        yield where, dataset


def _classes(dataset: Any) -> List[str]:
    found = (getattr(dataset, 'metainfo', None) or {}).get('classes')
    return [str(name) for name in found] if found is not None and not isinstance(found, str) else []


def _source(dataset: Any) -> str:
    return str(getattr(dataset, 'ann_file', '') or getattr(dataset, 'data_root', '') or type(dataset).__name__)


def _compare_classes(where: str, dataset: Any, classes: List[str], key: str, count: int) -> None:
    hidden = [name for name in classes if name.startswith('.')]
    if hidden and not getattr(dataset, 'ann_file', ''):
        folder = getattr(dataset, 'img_prefix', '') or _source(dataset)
        raise ValueError(f'{where}: the hidden folder {os.path.join(folder, hidden[0])} was taken for a class: remove '
                         f'it, or give {where}.classes')
    if len(classes) != count:
        some = ', '.join(classes[:4]) + (', ...' if len(classes) > 4 else '')
        raise ValueError(f'{key}={count}, but {where} ({_source(dataset)}) has {len(classes)} classes ({some}): set '
                         f'{key}={len(classes)}, or mend the classes of the data')


def _compare_labels(where: str, dataset: Any, key: str, count: int) -> None:
    if not hasattr(dataset, 'get_data_info') or not hasattr(dataset, '__len__'):
        return
    for number in range(len(dataset)):
        info = dataset.get_data_info(number)
        value = info.get('gt_label', info.get('label'))
        if value is None:
            continue
        labels = np.ravel(np.asarray(value))
        if labels.size and labels.dtype.kind in 'iu' and not (0 <= labels.min() and labels.max() < count):
            odd = int(labels.min() if labels.min() < 0 else labels.max())
            raise ValueError(f'{_source(dataset)}{_line(dataset, number, odd)}: label {odd} of {where} lies outside '
                             f'0..{count - 1}: labels begin at 0; mend the list, or set {key} to the number of classes')


def _line(dataset: Any, number: int, label: int) -> str:
    """', line N' if the sample's line in its list can be told for sure."""
    path = getattr(dataset, 'ann_file', '')
    if not path or not os.path.isfile(path):
        return f', sample {number}'
    with open(path, encoding='utf-8', errors='replace') as file:
        filled = [(place, text) for place, text in enumerate(file, 1) if text.strip()]
    if len(filled) == len(dataset) and str(label) in filled[number][1].replace(',', ' ').split():
        return f', line {filled[number][0]}'
    return f', sample {number}'
