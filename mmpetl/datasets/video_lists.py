# SPDX-License-Identifier: Apache-2.0
"""List files of videos: one path and one label a line, as VideoMAE, APT and V-PETL write them, and in other forms."""

import os
import re
from typing import Iterable, List, NamedTuple, Optional, Sequence, Tuple

from ..weights.io import atomic_write
from .how_to_get import how_to_get
from .list_files import read_lines, read_rows

DELIMITERS = {'auto': '', ' ': r'\s+', ',': r'\s*,\s*'}


class Entry(NamedTuple):
    """One line of a list."""
    path: str
    label: int
    line: int


def read_video_list(path: str, num_classes: Optional[int] = None, delimiter: str = 'auto',
                    classes: Optional[Sequence[str]] = None, with_label: bool = True,
                    first_label: int = 0) -> List[Entry]:
    """Read a list of videos, in every form of :func:`mmpetl.datasets.list_files.read_rows`.

    The label is what follows the last delimiter, so paths may hold blanks and commas. Empty lines are passed over.

    Args:
        path: The list file.
        num_classes: Number C of classes; labels must lie in 0..C-1. None checks only that they are not negative.
        delimiter: 'auto', or ',' or ' ' where only this one may stand before the label.
        classes: Names that labels may have in place of numbers.
        with_label: False for a list of paths alone; labels are -1 then.
        first_label: The label of the first class, 0 or 1.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the delimiter is unknown, a line has no label, several, or one outside the classes, is a row of
            extracted frames (path, number of frames, label), or the list is empty; the message gives file and line.
    """
    if delimiter not in DELIMITERS:
        raise ValueError(f"delimiter must be ',', ' ' or 'auto', got {delimiter!r}")
    if not os.path.isfile(path):
        raise FileNotFoundError(
            f'{path}: no such list; ' + (how_to_get(path) or "'mmpetl fetch' lists the data sets that can be had"))
    for number, text in enumerate(read_lines(path) if with_label else (), 1):
        _check_line(text.strip(), f'{path}, line {number}', delimiter)
    try:
        entries = [Entry(row.name, row.label, row.line)
                   for row in read_rows(path, classes, with_label, first_label)]
    except ValueError as error:
        message = str(error)
        message = message.replace(f'{path} lists no image', f'{path} lists no video')
        raise ValueError(message.replace(', but an image has one', ', but a video has one')) from None
    for entry in entries:
        if num_classes is not None and entry.label >= num_classes:
            raise ValueError(f'{path}, line {entry.line}: label {entry.label} of {entry.path!r} is not one of the '
                             f'classes 0..{num_classes - 1}')
    return entries


def _check_line(text: str, where: str, delimiter: str) -> None:
    """Refuse what would be read as a file of another name.

    Raises:
        ValueError: With file and line.
    """
    several = re.fullmatch(r'(.*\S)\s+(\d+)((?:\s+\d+)+)', text)
    if several and os.path.splitext(several[1])[1]:
        raise ValueError(f'{where}: {len(several[3].split()) + 1} labels in {text!r}, but a video has one')
    if several:
        raise ValueError(f"{where}: {text!r} is a row of extracted frames (path, number of frames, label): list the "
                         "video files as 'path label', or read the frames by mmaction2's RawframeDataset")
    if text and delimiter != 'auto' and not re.fullmatch(rf'.*?\S{DELIMITERS[delimiter]}"?-?\d+(\.0+)?"?', text):
        raise ValueError(f"{where}: no label after {delimiter!r} in {text!r}; expected 'path{delimiter}label', or "
                         "write delimiter='auto'")


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
    atomic_write(path, lambda file: file.write(text.encode()))
