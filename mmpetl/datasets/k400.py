# SPDX-License-Identifier: Apache-2.0
"""Lists of Kinetics-400 from its annotations and the videos that are there."""

import csv
import io
import os
from pathlib import Path
from typing import Dict, List, Tuple

from ..weights.reading import MAX_LIST, read_text

Row = Tuple[str, int]
#: Part of ours -> its name in Kinetics, of the list and of the folder; the test videos have no labels.
_FILES = (('train', 'train'), ('test', 'val'))


def k400_lists(videos: Path, lists: Path) -> Tuple[Dict[str, Dict[str, List[Row]]], List[str]]:
    """``train.csv`` and ``val.csv`` (columns label, youtube_id, time_start and time_end); labels are alphabetical.

    A video is ``train/<id>_<start>_<end>.mp4`` with seconds of six digits (``val/`` for testing), in the folder itself
    or in a folder of its class. Videos that are not there are left out and counted: they were withdrawn, so that every
    copy has its own number.

    Args:
        videos: Folder with ``train`` and ``val``.
        lists: Folder of the annotations.

    Raises:
        FileNotFoundError: If a list is missing.
        ValueError: If a list has other columns.
    """
    entries = {part: _listed(lists / f'{name}.csv') for part, name in _FILES}
    classes = sorted({label for rows in entries.values() for label, _ in rows})
    number = {label: i for i, label in enumerate(classes)}
    found: Dict[str, List[Row]] = {}
    for part, folder in _FILES:
        there = {path.stem: os.path.relpath(path, videos) for path in sorted((videos / folder).rglob('*.mp4'))}
        found[part] = [(there[stem], number[label]) for label, stem in entries[part] if stem in there]
        print(f'{folder}: {len(found[part])} of {len(entries[part])} listed videos are there')
    return {'': found}, classes


def _listed(path: Path) -> List[Tuple[str, str]]:
    """Label and file name, without suffix, of every video in an annotation file."""
    if not path.is_file():
        raise FileNotFoundError(f'{path} is missing')
    rows = csv.DictReader(io.StringIO(read_text(path, MAX_LIST), newline=''))
    try:
        if not {'label', 'youtube_id', 'time_start', 'time_end'} <= set(rows.fieldnames or ()):
            raise ValueError('expected the columns label, youtube_id, time_start and time_end, got '
                             f'{", ".join(rows.fieldnames or ["nothing"])!r:.200}')
        return [(row['label'], f'{row["youtube_id"]}_{int(row["time_start"]):06d}_{int(row["time_end"]):06d}')
                for row in rows]
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(f'{path}: {error}') from None
