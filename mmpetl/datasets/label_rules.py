# SPDX-License-Identifier: Apache-2.0
"""VTAB-1k's label rules and list slices, for those who make the lists from raw records instead of downloading them.

Raw records are plain dicts as the named sources hold them. Sources: VTAB (arXiv 1910.04867) and VPT's data folder;
images of dSprites are 0/1 masks and those of smallNORB have one channel.
"""

import os
import re
from functools import partial
from typing import Any, BinaryIO, Callable, Dict, Mapping, Sequence, Tuple

from ..weights.io import atomic_write
from .tables import VTAB, get_task

Record = Mapping[str, Any]


def _last_below(value: float, thresholds: Sequence[float]) -> int:
    """Largest index whose threshold lies below ``value``."""
    below = [i for i, t in enumerate(thresholds) if t < value]
    if not below:
        raise ValueError(f'{value} is not above the lowest threshold {thresholds[0]}')
    return below[-1]


def label(record: Record) -> int:
    """The label that the record carries."""
    return int(record['label'])


def clevr_count(record: Record) -> int:
    """Number of objects minus 3: 3..10 objects -> classes 0..7."""
    count = len(record['objects'])
    if not 3 <= count <= 10:
        raise ValueError(f'a CLEVR image has 3 to 10 objects, this record has {count}')
    return count - 3


def clevr_distance(record: Record) -> int:
    """Distance class of the nearest object: its smallest ``pixel_coords[2]`` against 0, 8, 8.5, 9, 9.5, 10, 100 ->
    0..5."""
    nearest = min(float(o['pixel_coords'][2]) for o in record['objects'])
    return _last_below(nearest, (0, 8, 8.5, 9, 9.5, 10, 100))


def kitti_distance(record: Record) -> int:
    """Distance class of the nearest car, van or truck: 0 up to 8 m, 1 up to 20 m, 2 farther, 3 none in sight.

    Objects have a ``type`` (0 car, 1 van, 2 truck; others are ignored) and a ``location`` (x, y, z) in metres; z points
    away from the camera.
    """
    depths = [float(o['location'][2]) for o in record['objects'] if int(o['type']) < 3]
    return _last_below(min(depths, default=1000.0), (-100, 8, 20, 999))  # none: beyond the last threshold


def dsprites_location(record: Record) -> int:
    """``label_x_position`` 0..31 in 16 even bins."""
    return int(record['label_x_position']) // 2


def dsprites_orientation(record: Record) -> int:
    """``label_orientation`` 0..39 in 16 bins of two or three: floor(x / 2.5)."""
    return int(int(record['label_orientation']) / 2.5)


def smallnorb_azimuth(record: Record) -> int:
    """``label_azimuth``, 0..17."""
    return int(record['label_azimuth'])


def smallnorb_elevation(record: Record) -> int:
    """``label_elevation``, 0..8."""
    return int(record['label_elevation'])


RULES: Dict[str, Callable[[Record], int]] = {
    f.__name__: f for f in (label, clevr_count, clevr_distance, kitti_distance, dsprites_location, dsprites_orientation,
                            smallnorb_azimuth, smallnorb_elevation)}


def slice_bounds(text: str, lengths: Mapping[str, int]) -> Tuple[str, int, int]:
    """Read ``'train[45000:45200]'``, ``'test[50%:]'`` or ``'test'`` -> (raw split, start, stop).

    Args:
        text: Slice as in the table.
        lengths: Number of records of each raw split.

    Raises:
        ValueError: If the slice cannot be read or the raw split is too short.
    """
    match = re.fullmatch(r'(\w+)(?:\[(\d+%?)?:(\d+%?)?\])?', text)
    if not match or match[1] not in lengths:
        raise ValueError(f'slice {text!r} cannot be read or names a split that is not among {sorted(lengths)}')
    length = lengths[match[1]]

    def bound(value: str, default: int) -> int:
        if not value:
            return default
        return length * int(value[:-1]) // 100 if value.endswith('%') else int(value)

    start, stop = bound(match[2], 0), bound(match[3], length)
    if not start <= stop <= length:
        raise ValueError(f'slice {text!r} needs {stop} records, but the raw split has {length}')
    return match[1], start, stop


def _write_lines(rows: Sequence[str], file: BinaryIO) -> None:
    file.write(('\n'.join(rows) + '\n').encode())


def write_lists(task: str, records: Mapping[str, Sequence[Record]], folder: str,
                name: str = 'images/{list}/{index:06d}.png') -> Dict[str, int]:
    """Write ``train800.txt``, ``val200.txt``, ``train800val200.txt`` and ``test.txt`` of a VTAB-1k task from raw
    records.

    Args:
        task: Key of the task.
        records: Records of every raw split, in file order.
        folder: Where the lists go.
        name: Image name of a record; ``{list}`` is the list and ``{index}`` the position in the raw split.

    Returns:
        Number of lines of each list.

    Raises:
        ValueError: If a raw split is too short or a record breaks the task's label rule.
    """
    spec = get_task(VTAB, task)
    rule = RULES[spec.label_rule]
    lengths = {split: len(rows) for split, rows in records.items()}
    lines: Dict[str, list] = {}
    for part, text in spec.slices.items():
        split, start, stop = slice_bounds(text, lengths)
        lines[part] = [f'{name.format(list=part, index=i)} {rule(records[split][i])}' for i in range(start, stop)]
    lines['train800val200'] = lines['train800'] + lines['val200']
    os.makedirs(folder, exist_ok=True)
    for part, rows in lines.items():
        atomic_write(os.path.join(folder, f'{part}.txt'), partial(_write_lines, rows))
    return {part: len(rows) for part, rows in lines.items()}
