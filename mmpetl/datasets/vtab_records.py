# SPDX-License-Identifier: Apache-2.0
"""VTAB-1k out of data sets in TensorFlow Datasets' form, without TensorFlow: PNG files and the four lists."""

import argparse
import os
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Sequence

import numpy as np
from PIL import Image

from ..names import folder
from ..suggest import nearest
from .label_rules import slice_bounds, write_lists
from .pictures import decode_picture
from .tables import VTAB, Task, get_task
from .tfrecord import Records, find_splits


def source_folder(task: Task, root: str) -> str:
    """The folder of a task's raw records: ``<root>/<name>[/<config>]/<version>/``, the highest fitting version.

    Raises:
        FileNotFoundError: If there is none.
    """
    name, _, version = task.source.partition(':')
    base = Path(root).expanduser() / name
    fits = [p for p in base.glob('*.*.*') if p.is_dir() and (p.name + '.').startswith(version + '.')]
    if not fits:
        raise FileNotFoundError(f'{base}/{version}.*.* does not exist: the task {task.name!r} is made of '
                                f'{name} of TensorFlow Datasets, version {version}; '
                                "'mmpetl fetch vtab' gets it as pictures with lists")
    return str(max(fits, key=lambda p: [int(n) if n.isdigit() else -1 for n in p.name.split('.')]))


def _write_png(picture: np.ndarray, path: str) -> None:
    """A file that appears when it is complete; not synced one by one, as there are tens of thousands."""
    Image.fromarray(picture).save(f'{path}.part', 'PNG')
    os.replace(f'{path}.part', path)


def _picture(task: Task, record: Mapping[str, Any]) -> np.ndarray:
    """(H, W, 3) uint8; dSprites' masks are 0 and 1."""
    picture = decode_picture(record['image'])
    return picture * np.uint8(255) if task.name.startswith('dsprites') and picture.max() <= 1 else picture


def write_task(name: str, root: str, out: str, progress: bool = False) -> Dict[str, int]:
    """Write pictures and lists of a task into ``<out>/<name>/``; pictures that are there already are kept.

    Args:
        name: Key of the task.
        root: Folder of TensorFlow Datasets, usually ``~/tensorflow_datasets``.
        out: Folder of VTAB-1k.
        progress: Show a bar.

    Returns:
        Number of lines of each list.

    Raises:
        FileNotFoundError: If the records, or one of their shards, are missing.
        ValueError: If a split is too short, or a record breaks the task's rule.
    """
    from rich.progress import Progress
    task = get_task(VTAB, name)
    folder = os.path.join(os.path.expanduser(out), task.directory)
    splits: Dict[str, Records] = find_splits(source_folder(task, root))
    lengths = {split: len(records) for split, records in splits.items()}
    bounds = {part: slice_bounds(text, lengths) for part, text in task.slices.items()}
    with Progress(disable=not progress, transient=True) as bar:
        for part, (split, start, stop) in bounds.items():
            os.makedirs(os.path.join(folder, 'images', part), exist_ok=True)
            for i in bar.track(range(start, stop), description=f'{name} {part}'):
                path = os.path.join(folder, 'images', part, f'{i:06d}.png')
                if not os.path.exists(path):
                    try:
                        picture = _picture(task, splits[split][i])
                    except (KeyError, ValueError, TypeError) as error:
                        raise ValueError(f'{name}, {split} record {i}: no picture ({error})') from None
                    _write_png(picture, path)
    return write_lists(name, splits, folder)


def main(doc: Optional[str], argv: Optional[Sequence[str]] = None) -> int:
    """``tools/prepare_vtab.py``."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('root', nargs='?', type=folder, default='~/tensorflow_datasets',
                        help='folder of TensorFlow Datasets')
    parser.add_argument('--out', type=folder, default=VTAB.root, help=f'default {VTAB.root}')
    parser.add_argument('--task', nargs='+', default=[], help='default: those whose records are there')
    args = parser.parse_args(argv)
    for name in args.task:
        if name not in VTAB.tasks:
            parser.error(f'unknown task {name!r}' + nearest(name, VTAB.tasks))
    done = 0
    for name in args.task or VTAB.tasks:
        try:
            counts = write_task(name, args.root, args.out, progress=True)
        except (FileNotFoundError, ValueError) as error:
            print(f'{name}: {error}')
            continue
        done += 1
        print(f'{name}: {", ".join(f"{part} {count}" for part, count in counts.items())}')
    print(f'{done} of {len(args.task or VTAB.tasks)} tasks in {args.out}; look at them by: mmpetl data check vtab '
          f'--root {args.out}')
    return 0 if done == len(args.task or VTAB.tasks) or (done and not args.task) else 1
