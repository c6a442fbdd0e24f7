"""List files of videos in the form of VideoMAE, APT and V-PETL: one path and one label a line, separated by a blank or
a comma."""

import os
import re
from typing import BinaryIO, Iterable, List, NamedTuple, Optional, Tuple

from ..weights.io import atomic_write
from ..weights.reading import MAX_LIST, read_text

DELIMITERS = {'auto': r'\s*[,\s]\s*', ' ': r'\s+', ',': r'\s*,\s*'}


class Entry(NamedTuple):
    """One line of a list."""
    path: str
    label: int
    line: int


def read_video_list(path: str, num_classes: Optional[int] = None, delimiter: str = 'auto') -> List[Entry]:
    """Read a list of videos.

    The label is what follows the last delimiter, so paths may hold blanks and commas. Empty lines are passed over.

    Args:
        path: The list file, UTF-8.
        num_classes: Number C of classes; labels must lie in 0..C-1. None checks only that they are not negative.
        delimiter: ',' or ' ', or 'auto' for either.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the delimiter is unknown, a line has no label or one outside the classes, or the list is empty;
            the message gives file and line.
    """
    if delimiter not in DELIMITERS:
        raise ValueError(f"delimiter must be ',', ' ' or 'auto', got {delimiter!r}")
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f'{path}: no such list; tools/prepare_hmdb51.py, prepare_ucf101.py and prepare_ssv2.py write them')
    pattern = re.compile(rf'(.*?\S){DELIMITERS[delimiter]}(-?\d+)')
    entries: List[Entry] = []
    for number, text in enumerate(read_text(path, MAX_LIST).split('\n'), 1):
        text = text.strip()
        if not text:
            continue
        found = pattern.fullmatch(text)
        if not found:
            raise ValueError(f"{path}, line {number}: no label in {text!r}; expected 'path label' or 'path,label'")
        label = int(found[2])
        if label < 0 or (num_classes is not None and label >= num_classes):
            classes = 'a class id >= 0' if num_classes is None else f'one of the classes 0..{num_classes - 1}'
            raise ValueError(f'{path}, line {number}: label {label} of {found[1]!r} is not {classes}')
        entries.append(Entry(found[1], label, number))
    if not entries:
        raise ValueError(f'{path}: the list is empty')
    return entries


def write_video_list(path: str, rows: Iterable[Tuple[str, int]], delimiter: str = ' ') -> None:
    """Write a list of videos; the file appears only when it is complete.

    Args:
        path: The list file.
        rows: Paths and labels.
        delimiter: ' ' (VideoMAE, APT) or ',' (V-PETL).
    """
    write_text(path, ''.join(f'{name}{delimiter}{label}\n' for name, label in rows))


def write_text(path: str, text: str) -> None:
    """Write a text file, which appears only when it is complete; folders are made."""

    def write(file: BinaryIO) -> None:
        file.write(text.encode())

    os.makedirs(os.path.dirname(path) or '.', exist_ok=True)
    atomic_write(path, write)
