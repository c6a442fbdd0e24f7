# SPDX-License-Identifier: Apache-2.0
"""Readers of the published list formats. Every reader returns ``[(image name, labels)]`` and says what is wrong with a
bad file."""

import os
from typing import Any, Dict, Iterable, List, Sequence, Tuple

from ..names import path_below
from ..weights.reading import MAX_LIST, read_json
from .list_files import read_lines

Entries = List[Tuple[str, List[int]]]


def _label(text: Any, where: str) -> int:
    """``text`` as a label >= 0.

    Raises:
        ValueError: If it is not a whole number >= 0; ``where`` opens the message.
    """
    try:
        label = int(text)
    except (TypeError, ValueError):
        raise ValueError(f'{where}: label {text!r} is not a whole number') from None
    if label < 0 or (isinstance(text, float) and label != text):
        raise ValueError(f'{where}: label {text!r} is not a class id >= 0: mend the line')
    return label


def _load_json(path: str) -> Any:
    try:
        return read_json(path, MAX_LIST)
    except ValueError as error:
        raise ValueError(f'{error}: fetch the list again') from None


def read_text(path: str, need_label: bool = True) -> Entries:
    """Lines ``image name label[,label]``, split at the last blank because names may hold blanks.

    Args:
        path: The list file.
        need_label: Whether a line without a label is an error; otherwise it is an image without any class.

    Raises:
        ValueError: If a line has no label or one that is not a class id; the message gives file and line.
    """
    entries: Entries = []
    for number, line in enumerate(read_lines(path), 1):
        line = line.strip()
        if not line:
            continue
        where = f'{path}, line {number}'
        name, _, labels = line.rpartition(' ')
        if not name:
            if need_label:
                raise ValueError(f"{where}: no label in {line!r}; expected 'image label'")
            name, labels = line, ''
        entries.append((name.strip(), [_label(text, where) for text in labels.split(',')] if labels else []))
    return entries


def read_entry_list(path: str) -> Entries:
    """A JSON list of one-entry objects ``[{image name: label}, ...]``.

    Raises:
        ValueError: If the file has another form.
    """
    rows = _load_json(path)
    if not isinstance(rows, list):
        raise ValueError(
            f'{path}: expected a JSON list of one-entry objects [{{image: label}}, ...], got {type(rows).__name__}')
    entries: Entries = []
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or len(row) != 1:
            raise ValueError(f'{path}, entry {number}: expected one {{image: label}}, got {row!r}')
        (name, label), = row.items()
        entries.append((name, [_label(label, f'{path}, entry {number}')]))
    return entries


def read_mapping(path: str) -> Dict[str, Any]:
    """A JSON object ``{image name: class id}``; ids are returned as they stand (see :func:`contiguous_ids`).

    Raises:
        ValueError: If the file has another form.
    """
    rows = _load_json(path)
    if not isinstance(rows, dict):
        raise ValueError(f'{path}: expected a JSON object {{image: class id}}, got {type(rows).__name__}')
    for name, label in rows.items():
        if not isinstance(label, (int, str)) or isinstance(label, bool):
            raise ValueError(f'{path}: class id of {name!r} is {label!r}; expected a number or a string')
    return rows


def read_coco(path: str) -> Tuple[Entries, List[str]]:
    """A COCO file with ``images``, ``annotations`` and ``categories``.

    Images are ordered by id; class ids are the positions of the categories ordered by id; ``zip_file`` of an image is
    put before its name as ``zip_file@name``.

    Returns:
        The entries and the names of the classes.

    Raises:
        ValueError: If a part is missing, or an annotation names an unknown image or category.
    """
    data = _load_json(path)
    for part in ('images', 'annotations', 'categories'):
        if not isinstance(data, dict) or not isinstance(data.get(part), list):
            raise ValueError(f'{path}: not a COCO file, the list {part!r} is missing')
    try:
        categories = sorted(data['categories'], key=lambda c: c['id'])
        position = {c['id']: i for i, c in enumerate(categories)}
        images = sorted(data['images'], key=lambda image: image['id'])
        labels: Dict[Any, List[int]] = {image['id']: [] for image in images}
        for number, annotation in enumerate(data['annotations']):
            image, category = annotation['image_id'], annotation['category_id']
            if image not in labels or category not in position:
                raise ValueError(f'{path}, annotation {number}: unknown image {image!r} or category {category!r}')
            labels[image].append(position[category])
        entries = []
        for image in images:
            archive = f"{image['zip_file']}@" if image.get('zip_file') else ''
            entries.append((archive + image['file_name'], labels[image['id']]))
        return entries, [str(c.get('name', c['id'])) for c in categories]
    except KeyError as error:
        raise ValueError(f'{path}: a COCO entry lacks the key {error}') from None
    except (TypeError, AttributeError):  # entries that are no objects, ids of several types
        raise ValueError(f'{path}: not a COCO file, an entry is no JSON object or the ids are of several types'
                         ) from None


def contiguous_ids(mappings: Iterable[Dict[str, Any]]) -> Dict[Any, int]:
    """Class ids 0..C-1 from the union of several lists, in sorted order.

    The union matters: ranks within one list shift as soon as that list lacks a class. Ids that all read as numbers are
    sorted as numbers, others as strings.
    """
    found = {label for mapping in mappings for label in mapping.values()}
    try:
        ordered: List[Any] = sorted(found, key=int)
    except ValueError:
        ordered = sorted(found, key=str)
    return {label: rank for rank, label in enumerate(ordered)}


def below(root: str, name: str, path: str, whole: bool = False) -> str:
    """Path of an entry of a list below the folder of its images.

    Args:
        root: The folder; '' where the entries are paths of their own.
        name: The entry.
        path: The list, for messages.
        whole: Absolute entries are taken as they are; what they name is only ever read.

    Raises:
        ValueError: If it leads out of the folder.
    """
    try:
        if not root or whole and os.path.isabs(name):
            path_below(name.lstrip('/'), f'{path}:')
            return name
        return os.path.join(root, path_below(name, f'{path}:'))
    except ValueError as error:
        raise ValueError(f'{error}; or leave data_root and data_prefix empty and list whole paths') from None


def check_labels(entries: Entries, num_classes: int, path: str, multi_label: bool = False) -> None:
    """Refuse labels outside 0..C-1, and several labels where a task has one per image.

    Raises:
        ValueError: Naming the file, the image and what is wrong.
    """
    for name, labels in entries:
        if not multi_label and len(labels) != 1:
            raise ValueError(f'{path}: {name!r} has {len(labels)} labels, but the task has exactly one per image')
        for label in labels:
            if label >= num_classes:
                raise ValueError(f'{path}: {name!r} has label {label}, but the task has classes 0..{num_classes - 1}')


def first_existing(folder: str, files: Sequence[str]) -> str:
    """Path of the first of ``files`` that exists in ``folder``, or ''."""
    for file in files:
        path = os.path.join(folder, file)
        if os.path.isfile(path):
            return path
    return ''
