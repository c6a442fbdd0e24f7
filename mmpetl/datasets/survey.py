# SPDX-License-Identifier: Apache-2.0
"""Look at every file of a data set: does it decode, how large is it, what numbers does it hold, is it there twice."""

import hashlib
import math
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from ..weights.reading import open_regular
from .how_to_get import and_get
from .loading import read_bytes
from .picture_readers import BandsError
from .pictures import DAMAGED, read_stored, show, what_is_wrong
from .video_probe import check_videos

Tick = Callable[[int, int], None]


@dataclass
class Look:
    """What is known of one file.

    Attributes:
        digest: Of its bytes; '' if it cannot be read.
        wrong: Why it cannot be used, '' if it can.
        size: Height and width in pixels; (0, 0) if unknown.
        frames: Frames of a video.
        numbers: (kind, lowest, highest) of a picture of more than 8 bits whose file states no range; kind 'u' or 'f'.
        fits: Whether such a picture fits the rule without a window.
        bands: How many bands a picture has of which it is not known which are meant.
    """
    digest: str = ''
    wrong: str = ''
    size: Tuple[int, int] = (0, 0)
    frames: int = 0
    numbers: Optional[Tuple[str, float, float]] = None
    fits: bool = True
    bands: int = 0


@dataclass
class Survey:
    """All files of a data set.

    Attributes:
        looks: By path, in the order in which the paths were given.
    """
    looks: Dict[str, Look] = field(default_factory=dict)

    def unreadable(self) -> List[str]:
        """One line per file that cannot be used."""
        gone = ('is missing', 'cannot be read: no such file')
        return [f'{path} {look.wrong}{and_get(path) if look.wrong in gone else ""}' for path, look in self.looks.items()
                if look.wrong]

    def twins(self) -> List[List[str]]:
        """Files of equal bytes."""
        same: Dict[str, List[str]] = defaultdict(list)
        for path, look in self.looks.items():
            if look.digest:
                same[look.digest].append(path)
        return [paths for paths in same.values() if len(paths) > 1]

    def window(self) -> Optional[Tuple[float, float]]:
        """Values that are black and white for all pictures together, where the rule does not fit one of them.

        Whole numbers from 0 on end at the next power of two, as 12 bits in files of 16.
        """
        numbers = [look.numbers for look in self.looks.values() if look.numbers]
        if not numbers or all(look.fits for look in self.looks.values()):
            return None
        low, high = min(n[1] for n in numbers), max(n[2] for n in numbers)
        if all(n[0] == 'u' for n in numbers) and low >= 0:
            return 0., float(2**max(math.ceil(math.log2(high + 1)), 1) - 1)
        low = min(low, 0.)
        return low, high if high > low else low + 1


def extent(survey: Survey) -> str:
    """``', 60-140 x 70-139 pixels, 16-48 frames'``: widths, heights and lengths, as far as they are known."""
    seen = [look for look in survey.looks.values() if look.size != (0, 0)]
    frames = [look.frames for look in survey.looks.values() if look.frames]

    def span(values: List[int]) -> str:
        return str(min(values)) if min(values) == max(values) else f'{min(values)}-{max(values)}'

    text = f', {span([s.size[1] for s in seen])} x {span([s.size[0] for s in seen])} pixels' if seen else ''
    return text + (f', {span(frames)} frames' if frames else '')


def _picture(path: str, bands: Optional[Sequence[int]], window: Optional[Tuple[float, float]]) -> Look:
    """What one file holds: damage, size, and the range of numbers that are no 8-bit colours."""
    try:
        data = read_bytes(path)
    except OSError:
        return Look(wrong='is missing')
    if not data:
        return Look(wrong='is empty')
    look = Look(hashlib.blake2b(data, digest_size=16).hexdigest())
    try:
        stored = read_stored(data, bands)
    except DAMAGED as error:
        look.wrong = what_is_wrong(error)
        look.bands = error.count if isinstance(error, BandsError) else 0
        return look
    values = stored.values
    look.size = (int(values.shape[0]), int(values.shape[1]))
    # What is not 8 bits wide, and whose file does not say which numbers are black and white, needs a window.
    if values.dtype not in (np.uint8, np.bool_) and stored.span is None:
        # The last of 2 or 4 channels is opacity.
        colours = values[..., :-1] if values.ndim == 3 and values.shape[2] in (2, 4) else values
        finite = colours[np.isfinite(colours)]
        kind = 'u' if values.dtype.kind in 'ui' else 'f'
        look.numbers = (kind, float(finite.min()), float(finite.max())) if finite.size else (kind, 0., 0.)
        try:
            show(stored, window=window)
        except ValueError:
            look.fits = False
    return look


def survey_pictures(paths: Iterable[str], bands: Optional[Sequence[int]] = None,
                    window: Optional[Tuple[float, float]] = None, jobs: int = 4, tick: Optional[Tick] = None) -> Survey:
    """Decode every picture.

    Args:
        paths: The files.
        bands: See :class:`mmpetl.datasets.LoadImage`.
        window: See :class:`mmpetl.datasets.LoadImage`.
        jobs: Threads.
        tick: Called with (files done, files in all).
    """
    unique = list(dict.fromkeys(paths))
    found = Survey()
    with ThreadPoolExecutor(max(1, jobs)) as pool:
        for path, look in zip(unique, pool.map(lambda p: _picture(p, bands, window), unique)):
            found.looks[path] = look
            if tick:
                tick(len(found.looks), len(unique))
    return found


def survey_videos(paths: Iterable[str], level: str = 'open', jobs: int = 2, tick: Optional[Tick] = None) -> Survey:
    """Open every video in a process of its own.

    Args:
        paths: The files.
        level: 'exists', 'open' or 'decode', see :func:`mmpetl.datasets.video_probe.check_videos`.
        jobs: Processes.
        tick: Called with (files done, files in all).
    """
    unique = list(dict.fromkeys(paths))
    done: List[str] = []

    def count(probe: object) -> None:
        done.append('')
        if tick:
            tick(len(done), len(unique))

    found = Survey()
    for probe in check_videos(unique, level, workers=jobs, progress=count):
        digest = _digest(probe.path) if not probe.reason else ''
        found.looks[probe.path] = Look(digest, f'cannot be read: {probe.reason}' if probe.reason else '', probe.size,
                                       probe.frames)
    return found


def _digest(path: str) -> str:
    """Of length, first and last mebibyte: whole videos would take as long as training on them."""
    found = hashlib.blake2b(str(os.path.getsize(path)).encode(), digest_size=16)
    with open_regular(path) as file:
        found.update(file.read(2**20))
        file.seek(max(os.path.getsize(path) - 2**20, 0))
        found.update(file.read())
    return found.hexdigest()


def across(parts: Mapping[str, Sequence[str]], survey: Survey) -> List[Tuple[str, str]]:
    """Pairs (training file, held-out file) of equal bytes.

    Args:
        parts: Name of a part -> its files; 'train' is compared with each of the others.
        survey: Of all files.
    """
    first = {survey.looks[path].digest: path for path in parts.get('train', ()) if survey.looks[path].digest}
    return [(first[survey.looks[path].digest], path) for part, paths in parts.items() if part != 'train'
            for path in paths if survey.looks[path].digest in first]
