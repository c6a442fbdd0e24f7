# SPDX-License-Identifier: Apache-2.0
"""Masks of segmentation, looked at before a run: what upstream finds after an epoch, without a name, or never."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import numpy as np
from PIL import Image
from rich.progress import Progress

from ..weights.reading import open_regular

#: From so many masks on there is a progress bar.
MANY = 300
#: EXIF's tag; from 5 on a picture lies on its side.
ORIENTATION = 0x0112
#: Problems that are named; of more their number.
NAMED = 4
#: Pixels that are counted at once.
PART = 1 << 22


@dataclass
class Masks:
    """What masks hold.

    Attributes:
        problems: What is wrong, a text per mask that begins with its file.
        pixels: Value -> number of pixels, as the loss gets them.
    """
    problems: List[str] = field(default_factory=list)
    pixels: Counter = field(default_factory=Counter)

    def unused(self, num_classes: int) -> List[int]:
        """The classes of which no mask has a pixel."""
        return [c for c in range(num_classes) if c not in self.pixels]


def mask_path(info: Mapping[str, Any]) -> Optional[str]:
    """The file of a sample's mask, if it has one."""
    path = info.get('seg_map_path')
    return str(path) if path else None


def reads_masks(transforms: Iterable[Any]) -> Tuple[bool, bool]:
    """Whether a pipeline reads masks as upstream does; and whether pictures, too, so that sizes must fit."""
    kinds = [type(t) for t in transforms]
    names = [kind.__name__ for kind in kinds if kind.__module__.startswith(('mmseg.', 'mmcv.', 'mmpetl.'))]
    return 'LoadAnnotations' in names, any(name in ('LoadImageFromFile', 'LoadImage') for name in names)


def _size(path: str) -> Optional[Tuple[int, int]]:
    """Width and height of a picture, upright; None where Pillow cannot tell, as other readers may."""
    try:
        with open_regular(path) as file, Image.open(file) as picture:
            width, height = picture.size
            return (height, width) if picture.getexif().get(ORIENTATION, 1) >= 5 else (width, height)
    except Exception:  # Pillow has errors of many classes for what is no picture
        return None


def _values(path: str, info: Mapping[str, Any]) -> np.ndarray:
    """Pixels per value 0..255 of a mask after ``reduce_zero_label`` and ``label_map``, (256,).

    Raises:
        ValueError: If the file is no mask.
    """
    try:
        with open_regular(path) as file, Image.open(file) as picture:
            mask, mode = np.asarray(picture), picture.mode
    except Exception as error:
        raise ValueError(f'cannot be read as a picture ({type(error).__name__})') from None
    if mask.ndim != 2:
        raise ValueError(f'has {mask.shape[-1]} channels (mode {mode}), but the number of its class is what a pixel of '
                         'a mask holds: save it with one channel, or with a palette')
    if mask.dtype == bool:
        mask = mask.astype(np.uint8)
    if mask.dtype.kind not in 'iu' or mask.min(initial=0) < 0 or mask.max(initial=0) > 255:
        raise ValueError(f'holds numbers up to {mask.max():g}: classes are 0..254, and 255 is left out')
    # by parts: counting makes 8 bytes of every pixel
    parts = np.array_split(mask.reshape(-1), 1 + mask.size // PART)
    found = np.sum([np.bincount(part, minlength=256) for part in parts], axis=0)
    if info.get('reduce_zero_label'):
        found = np.concatenate([found[1:], found[:1]])  # 0 -> 255, others one less
        found[255] += found[254]  # 255, which is left out, has become 254
        found[254] = 0
    if info.get('label_map'):
        before, found = found, found.copy()
        for old in info['label_map']:
            found[int(old)] -= before[int(old)]
        for old, new in info['label_map'].items():
            found[int(new)] += before[int(old)]
    return found


def _look(info: Mapping[str, Any], num_classes: int, ignored: int, sizes: bool) -> Tuple[str, Dict[int, int]]:
    """What is wrong with one mask ('' if nothing is), and its pixels per value."""
    path, picture = str(mask_path(info)), str(info.get('img_path') or '')
    if not os.path.isfile(path):
        return f'{path} does not exist (the mask of {picture})', {}
    try:
        counts = _values(path, info)
    except ValueError as error:
        return f'{path} {error}', {}
    pixels = {int(v): int(counts[v]) for v in np.flatnonzero(counts)}
    beyond = [v for v in pixels if v >= num_classes and v != ignored]
    if beyond:
        some = ', '.join(map(str, beyond[:5])) + (', ...' if len(beyond) > 5 else '')
        return f'{path} holds {some}, but classes are 0..{num_classes - 1}, and {ignored} is left out', pixels
    here, there = _size(path), _size(picture) if sizes else None
    if there and here and here != there:
        return (f'{path} has {here[0]} x {here[1]} pixels, its picture {picture} {there[0]} x {there[1]}', pixels)
    return '', pixels


def look_at_masks(infos: Sequence[Mapping[str, Any]], num_classes: int, ignored: int = 255, jobs: int = 4,
                  sizes: bool = True, title: str = '') -> Masks:
    """Open every mask of a data set.

    Args:
        infos: Samples with ``img_path``, ``seg_map_path`` and, as mmsegmentation has them, ``reduce_zero_label`` and
            ``label_map``; those without a mask are passed over.
        num_classes: Number C of classes; pixels hold 0..C-1.
        ignored: The value that is left out.
        jobs: Threads.
        sizes: Whether a mask must be as large as its picture.
        title: Shown with a progress bar where there are many.
    """
    listed = [info for info in infos if mask_path(info)]
    found = Masks()
    with Progress(disable=not title or len(listed) < MANY, transient=True) as bar, \
            ThreadPoolExecutor(max(1, jobs)) as pool:
        task = bar.add_task(title, total=len(listed))
        for problem, pixels in pool.map(lambda info: _look(info, num_classes, ignored, sizes), listed):
            found.pixels.update(pixels)
            if problem:
                found.problems.append(problem)
            bar.advance(task)
    return found


def refuse(found: Masks, total: int, where: str, classes: Sequence[str], num_classes: int, ignored: int) -> str:
    """See that masks can be trained on or compared with.

    Args:
        found: What they hold.
        total: How many there are.
        where: Key of the data set.
        classes: Names of the classes, or nothing.
        num_classes: Number of classes of the head.
        ignored: The value that is left out.

    Returns:
        A line about classes of which there is not one pixel; '' if there are all.

    Raises:
        ValueError: With the first files that are wrong, or if masks hold no class, or a single one.
    """
    if found.problems:
        some = '; '.join(found.problems[:NAMED])
        some += f'; and {len(found.problems) - NAMED} more' if len(found.problems) > NAMED else ''
        more = f', or set model.decode_head.num_classes ({num_classes}) and the classes of the data to what they hold' \
            if any(' but classes are 0..' in problem for problem in found.problems) else ''
        raise ValueError(f'{where}: {len(found.problems)} of {total} masks do not fit: {some}: mend them{more}')
    names = [f'{classes[c]} ({c})' if c < len(classes) else str(c) for c in range(num_classes)]
    missing = found.unused(num_classes)
    if not missing:
        return ''
    pixels = sum(found.pixels.values())
    share = found.pixels.get(ignored, 0) / max(1, pixels)
    left = f', and {ignored}, which is left out, in {100 * share:.0f} % of the pixels' if share else ''
    there = [names[c] for c in range(num_classes) if c not in missing]
    lost = ', '.join(names[c] for c in missing[:6]) + (', ...' if len(missing) > 6 else '')
    line = f'{where}: no mask holds {lost}; they hold {", ".join(there[:6]) or "no class"}'
    line += (', ...' if len(there) > 6 else '') + left
    if len(there) < 2:
        raise ValueError(f'{line}: there is nothing to tell apart; a pixel of a mask holds the number of its class, '
                         f'0..{num_classes - 1}')
    return line
