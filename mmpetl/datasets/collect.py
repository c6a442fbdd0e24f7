# SPDX-License-Identifier: Apache-2.0
"""A data set of one's own as it lies on disk, class folders or a list: which files, of which class, group and part."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Sequence, Tuple

from ..suggest import nearest
from .folders import PICTURES, SPLITS, VIDEOS, class_names, files_below, subfolders
from .list_files import WHOLE, Line, read_names, read_texts

#: Columns of a list that say what belongs together, and which part a file is in.
GROUP_COLUMNS = ('group', 'group_id', 'patient', 'patient_id', 'subject', 'subject_id')
SPLIT_COLUMNS = ('split', 'set', 'subset', 'partition')
#: Name of a part as people write it -> as it is written here.
PARTS = {'train': 'train', 'training': 'train', 'trainval': 'train', 'val': 'val', 'valid': 'val', 'validation': 'val',
         'dev': 'val', 'test': 'test', 'testing': 'test'}
KINDS = {'picture': PICTURES, 'video': VIDEOS}
#: What programs write where there is no label, in small letters; the second row may also be meant as a name.
NO_LABEL = ('', 'nan', 'nat', '<na>', '#n/a', 'n/a', 'null', 'inf', '-inf')
DOUBTFUL = ('none', 'na', '-', '?')


@dataclass
class Item:
    """One picture or video.

    Attributes:
        path: Relative to the root of the collection.
        label: Number of its class.
        group: What it must stay together with when the data are split; '' for nothing.
        part: 'train', 'val' or 'test' where the data say so, else ''.
    """
    path: str
    label: int
    group: str = ''
    part: str = ''


@dataclass
class Collection:
    """All files of a data set.

    Attributes:
        source: The folder or list it was read from.
        root: Folder that the paths start from.
        kind: 'picture' or 'video'.
        classes: Names of the classes in their order.
        items: The files.
        notes: What was understood and may surprise, one line each.
    """
    source: str
    root: str
    kind: str
    classes: Tuple[str, ...]
    items: List[Item] = field(default_factory=list)
    notes: List[str] = field(default_factory=list)

    def full(self, item: Item) -> str:
        """Path of a file."""
        return os.path.join(self.root, item.path)


def collect(source: str,
            kind: str = '',
            classes: str = '',
            root: str = '',
            columns: Optional[Dict[str, str]] = None) -> Collection:
    """Read what there is.

    Args:
        source: A folder of class folders, a folder with ``train`` (and ``val``, ``test``) of class folders, or a list.
        kind: 'picture' or 'video'; '' for what there is.
        classes: File with the class names, one a line; '' takes the names of the folders or the labels of the list.
        root: Folder that the paths of a list start from; '' for the folder of the list.
        columns: Names of the columns ``path``, ``label``, ``group`` and ``split`` of a list with a header, where they
            are none of the usual ones.

    Raises:
        FileNotFoundError: If the source, or a file of the list, does not exist.
        ValueError: One line that says what is wrong.
    """
    source = os.path.abspath(os.path.expanduser(source))
    names = read_names(os.path.expanduser(classes)) if classes else ()
    if kind and kind not in KINDS:
        raise ValueError(f'unknown kind {kind!r}' + nearest(kind, KINDS))
    if os.path.isdir(source):
        given = [f'--{key}-column {name}' for key, name in (columns or {}).items() if name]
        for option in ([f'--root {root}'] if root else []) + given:
            raise ValueError(f'{option}: {source} is a folder, and this is for lists: leave it out')
        found = _from_folders(source, kind, names)
    elif os.path.isfile(source):
        found = _from_list(source, kind, names, os.path.expanduser(root), columns or {})
    else:
        raise FileNotFoundError(f'{source} is neither a folder nor a list: name a folder with one folder per class, '
                                'or a list')
    if not found.items:
        raise ValueError(f'{source} holds no {kind} ({" ".join(KINDS[kind])}): choose another --kind, or leave it out')
    present = {item.label for item in found.items}
    if len(present) < 2:
        only = ', '.join(found.classes[label] for label in present)
        raise ValueError(f'{source} has files of one class only ({only}): give the folder that holds the class folders')
    empty = [name for label, name in enumerate(found.classes) if label not in present]
    if empty:
        found.notes.append(f'{len(empty)} of {len(found.classes)} classes have no {found.kind}: {", ".join(empty)}')
    return found


def _kind_of(names: Sequence[str], kind: str, source: str) -> str:
    if kind:
        return kind
    counts = {k: sum(name.lower().endswith(suffixes) for name in names) for k, suffixes in KINDS.items()}
    if all(counts.values()):
        raise ValueError(f'{source} holds {counts["picture"]} pictures and {counts["video"]} videos: choose by --kind '
                         'picture or --kind video')
    if not any(counts.values()):
        raise ValueError(f'{source} holds no picture ({" ".join(PICTURES)}) and no video ({" ".join(VIDEOS)}): name a '
                         'folder that does')
    return max(counts, key=lambda k: counts[k])


def _from_folders(source: str, kind: str, given: Tuple[str, ...]) -> Collection:
    subs = subfolders(source)
    parts = [name for name in subs if name in SPLITS]
    if 'train' not in parts and 'trainval' not in parts:
        parts = []  # classes that happen to be called so
    elif len(parts) < len(subs):
        odd = next(name for name in subs if name not in parts)
        raise ValueError(f'{source} holds {", ".join(parts)} and also {odd}: parts and classes side by side; move one '
                         'of them away')
    everything = list(files_below(source, PICTURES + VIDEOS))
    kind = _kind_of(everything, kind, source)
    if not subs:
        raise ValueError(f'{source} holds no class folders: make one folder per class in it, or give a list')
    names = given or class_names(os.path.join(source, parts[0]) if parts else source)
    place = {name: label for label, name in enumerate(names)}
    items, outside = [], []
    for path in everything:
        words = path.split(os.sep)
        if not path.lower().endswith(KINDS[kind]):
            continue
        if len(words) < (3 if parts else 2):
            outside.append(path)
            continue
        part, name = (PARTS[words[0]], words[1]) if parts else ('', words[0])
        if name not in place:
            raise ValueError(f'the folder {os.path.join(source, *words[:2 if parts else 1])} is none of the classes'
                             + nearest(name, place))
        items.append(Item(path, place[name], part=part))
    found = Collection(source, source, kind, names, items, [] if given else _doubts(names, source))
    if outside:
        found.notes.append(f'{len(outside)} {kind}s lie outside the class folders and are left out, first {outside[0]}')
    return found


def _column(lines: Sequence[Line], usual: Sequence[str], wanted: str, source: str) -> str:
    """The column of that meaning, '' if there is none."""
    present = {name.lower(): name for name in lines[0].more}
    if wanted and wanted.lower() not in present:
        more = nearest(wanted, lines[0].more) if lines[0].more else ', only paths and labels: leave the option out'
        raise ValueError(f'{source} has no column {wanted!r}{more}')
    return present[wanted.lower()] if wanted else next((present[name] for name in usual if name in present), '')


def _from_list(source: str, kind: str, given: Tuple[str, ...], root: str, columns: Dict[str, str]) -> Collection:
    lines = read_texts(source, given, columns=(columns.get('path', ''), columns.get('label', '')))
    root = os.path.abspath(root or os.path.dirname(source))
    group = _column(lines, GROUP_COLUMNS, columns.get('group', ''), source)
    split = _column(lines, SPLIT_COLUMNS, columns.get('split', ''), source)
    if not given:
        _check_labels(lines, source)
    names = given or _names_of(lines)
    place = {name: label for label, name in enumerate(names)}
    numbers = bool(given) and all(WHOLE.fullmatch(line.label) for line in lines)
    first = 1 if numbers and all(int(float(line.label)) for line in lines) else 0
    kind = _kind_of([line.name for line in lines], kind, source)
    items: List[Item] = []
    seen: Dict[str, Line] = {}
    for line in lines:
        where = f'{source}, line {line.line}'
        label = int(float(line.label)) - first if numbers else place.get(_plain(line.label), -1)
        if not 0 <= label < len(names):
            raise ValueError(f'{where}: label {line.label!r} is none of the {len(names)} classes'
                             + nearest(line.label, place))
        # a list that was written on Windows
        name = line.name if os.path.isfile(os.path.join(root, line.name)) else line.name.replace('\\', '/')
        if not os.path.isfile(os.path.join(root, name)):
            raise FileNotFoundError(f'{where}: {os.path.join(root, name)} does not exist; --root is the folder that '
                                    'the paths start from')
        before = seen.setdefault(name, line)
        if before is not line:
            if before.label != line.label:
                raise ValueError(f'{where}: {name!r} has label {line.label!r}, but {before.label!r} in line '
                                 f'{before.line}')
            continue
        part = line.more.get(split, '').lower() if split else ''
        if split and part not in PARTS:
            raise ValueError(f'{where}: {part!r} in the column {split!r} is no part' + nearest(part, PARTS))
        together = line.more.get(group, '') if group else ''
        if together and together.lower() in NO_LABEL:
            raise ValueError(f'{where}: {together!r} in the column {group!r} would hold strangers together: leave the '
                             'cell empty where there is no group')
        items.append(Item(name, label, together, PARTS.get(part, '')))
    found = Collection(source, root, kind, names, items)
    found.notes += [] if given else _doubts(names, source)
    found.notes += [f'files with the same {group!r} stay in the same part'] if group else []
    found.notes += [f'the parts are those of the column {split!r}'] if split else []
    if first:
        found.notes.append(f'labels start at 1: label 1 is {names[0]}')
    return found


def _check_labels(lines: Sequence[Line], source: str) -> None:
    """Refuse what stands for a missing label, where no class file says that it is a name.

    Raises:
        ValueError: With file and line.
    """
    for line in lines:
        negative = WHOLE.fullmatch(line.label) and float(line.label) < 0
        if negative or line.label.lower() in NO_LABEL:
            what = f'label {line.label!r} of {line.name!r} stands for a missing one' if line.label else (
                f'the label of {line.name!r} is empty')
            named = ', or name it as a class by --classes FILE' if line.label else ''
            raise ValueError(f'{source}, line {line.line}: {what}: write one, or remove the line{named}')


def _doubts(names: Sequence[str], source: str) -> List[str]:
    """A note for each class whose name may stand for a missing label, and one for measured values."""
    notes = [f'{source}: the class {name!r} is taken as a name; if it means that there is no label, remove its files'
             for name in names if name.lower() in (*NO_LABEL, *DOUBTFUL)]
    measured = [name for name in names if re.fullmatch(r'[+-]?\d*\.\d+', name)]
    notes += [f'{source}: {len(measured)} classes are numbers with a fraction, first {measured[0]}: each value is '
              'a class of its own'] if measured else []
    return notes


def _plain(label: str) -> str:
    """A label of a list as the name of a class; 3.0, as pandas writes it, is 3."""
    return str(int(float(label))) if WHOLE.fullmatch(label) else label


def _names_of(lines: Sequence[Line]) -> Tuple[str, ...]:
    """The labels in use: numbers in their order, names sorted as text."""
    found = Counter(_plain(line.label) for line in lines)
    whole = all(WHOLE.fullmatch(name) for name in found)
    return tuple(sorted(found, key=(lambda name: (int(name), name)) if whole else None))  # type: ignore[arg-type]
