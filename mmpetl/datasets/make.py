# SPDX-License-Identifier: Apache-2.0
"""Write the lists of a data set of one's own: train.txt, val.txt, test.txt and classes.txt."""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Dict, List, Optional, Sequence, Tuple

from .collect import Collection, Item
from .split import PARTS, split
from .survey import Survey
from .video_lists import write_text


@dataclass
class Lists:
    """A data set that is cut into its parts.

    Attributes:
        collection: The files.
        parts: 'train', 'val' and 'test' -> their files.
        window: Values that are black and white, where pictures need one.
        notes: What surprises, one line each.
    """
    collection: Collection
    parts: Dict[str, List[Item]]
    window: Optional[Tuple[float, float]] = None
    notes: List[str] = field(default_factory=list)

    def counts(self, part: str) -> Counter:
        """Number of files of each class in a part."""
        return Counter(item.label for item in self.parts[part])


def _groups(collection: Collection, survey: Survey) -> List[str]:
    """A group for every file: files of one group, and files of equal bytes, stay together."""
    # Union-find: a file that shares a group with one file and bytes with another brings both together.
    leader: Dict[str, str] = {}

    def find(key: str) -> str:
        while leader.setdefault(key, key) != key:
            leader[key] = leader[leader[key]]
            key = leader[key]
        return key

    keys = []
    for item in collection.items:
        digest = survey.looks[collection.full(item)].digest
        keys.append(f'file {item.path}')
        for other in ([f'group {item.group}'] if item.group else []) + ([f'bytes {digest}'] if digest else []):
            leader[find(keys[-1])] = find(other)
    return [find(key) for key in keys]


def cut(collection: Collection, survey: Survey, val: float = 0.2, test: float = 0.2, seed: int = 0) -> Lists:
    """Cut into training, validation and test.

    Parts that the data name stay as they are; what is missing of validation and test is cut out of training.

    Args:
        collection: The files, all readable.
        survey: Of all files.
        val: Share of each class for validation.
        test: Share of each class for testing.
        seed: Of the cut.

    Raises:
        ValueError: If nothing is left to train on.
    """
    items = collection.items
    named = {item.part for item in items if item.part}
    free = [i for i, item in enumerate(items) if item.part in ('', 'train')]
    groups = _groups(collection, survey)
    dealt = split([items[i].label for i in free], [groups[i] for i in free], 0. if 'val' in named else val,
                  0. if 'test' in named else test, seed)
    part = {i: name for i, name in zip(free, dealt)}
    parts: Dict[str, List[Item]] = {name: [] for name in PARTS}
    for i, item in enumerate(items):
        parts[part.get(i, item.part)].append(item)
    lists = Lists(collection, parts, survey.window())
    _note(lists, survey)
    return lists


def _note(lists: Lists, survey: Survey) -> None:
    """Put down what makes scores on these lists mean less than they seem to."""
    collection, names = lists.collection, lists.collection.classes
    lists.notes += collection.notes
    label = {collection.full(item): item.label for item in collection.items}
    part = {collection.full(item): name for name, items in lists.parts.items() for item in items}
    # Files of equal bytes: under two labels one of them is wrong, in two parts the test is no test.
    for twins in survey.twins():
        if len({label[path] for path in twins}) > 1:
            lists.notes.append(f'{twins[0]} and {twins[1]} are the same {collection.kind} under two classes')
        elif len({part[path] for path in twins}) > 1:
            lists.notes.append(f'{twins[0]} ({part[twins[0]]}) and {twins[1]} ({part[twins[1]]}) are the same '
                               f'{collection.kind}: scores on it say nothing')
    lists.notes += _films(lists)
    trained = lists.counts('train')
    missing = [name for i, name in enumerate(names) if not trained[i] and any(lists.counts(p)[i] for p in PARTS)]
    if missing:
        lists.notes.append(f'nothing to train on of {", ".join(missing)}: all of its groups are held out')
    if lists.window:
        low, high = lists.window
        lists.notes.append(f'pictures of more than 8 bits hold numbers from {low:g} to {high:g}: shown by window='
                           f'({low:g}, {high:g})')
    if not lists.parts['test']:
        lists.notes.append(f'too few {collection.kind}s to hold any out: tools/test.py will test on the training '
                           f'{collection.kind}s, which says nothing about new ones')
    elif not lists.parts['val']:
        lists.notes.append(f'too few {collection.kind}s for a validation part: training runs without one')


def _films(lists: Lists) -> List[str]:
    """A note where folders below the class folders hold pictures numbered in a row that were cut apart: frames of a
    film are alike, and a test on frames of a film that was trained on says nothing."""
    folders: Dict[str, List[str]] = {}
    part = {item.path: name for name, items in lists.parts.items() for item in items}
    for item in lists.collection.items:
        if lists.collection.kind == 'picture' and not item.part and not item.group:
            folders.setdefault(os.path.dirname(item.path), []).append(item.path)
    films = [folder for folder, paths in folders.items() if os.sep in folder and len({part[p] for p in paths}) > 1
             and _in_a_row(paths)]
    if len(films) < 2:
        return []
    return [f'{len(films)} folders such as {films[0]} hold pictures numbered in a row, as frames of a film, and lie in '
            'several parts: scores on frames of a film in training say nothing. Write films (ffmpeg -i '
            f'{films[0]}/%05d.jpg film.mp4), or give a list with a column group']


def _in_a_row(paths: Sequence[str]) -> bool:
    """Whether names differ in a number alone, and numbers follow each other; of at least eight files."""
    found = [re.fullmatch(r'(.*?)(\d+)\.\w+', os.path.basename(path)) for path in paths]
    numbers = sorted(int(match[2]) for match in found if match)
    alike = len({match[1] for match in found if match}) == 1 and len(numbers) == len(paths)
    return alike and len(numbers) >= 8 and numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def write_lists(lists: Lists, folder: str, overwrite: bool = False) -> None:
    """Write the lists of the parts that are not empty, and the class file; the same files may be there already.

    Raises:
        ValueError: If a path cannot be written into a list.
        FileExistsError: If a file with other content is there and must not be overwritten.
    """
    texts = {'classes.txt': ''.join(f'{name}\n' for name in lists.collection.classes)}
    for part, items in lists.parts.items():
        for item in items:
            if '\n' in item.path or '\r' in item.path or item.path != item.path.strip():
                raise ValueError(f'{item.path!r} holds a line break or begins or ends with a blank: rename the file')
        texts[f'{part}.txt'] = ''.join(f'{item.path} {item.label}\n' for item in items)
    # All are looked at before the first is written.
    for name, text in texts.items():
        path = os.path.join(folder, name)
        if os.path.exists(path) and not overwrite:
            with open(path, encoding='utf-8') as file:
                if file.read() != text:
                    raise FileExistsError(f'{path} is there already and says something else: choose another --out, or '
                                          'add --overwrite')
    for name, text in texts.items():
        if text:
            write_text(os.path.join(folder, name), text)
        elif os.path.exists(os.path.join(folder, name)):  # of an earlier cut that held something out
            os.remove(os.path.join(folder, name))
