# SPDX-License-Identifier: Apache-2.0
"""Try one video: does it open, do its first or all frames decode?"""

import os
import time
from dataclasses import dataclass
from typing import Tuple

import numpy as np

from .errors import VideoError
from .opening import FIRST, open_video
from .pyav_reader import SLACK


@dataclass(frozen=True)
class Probe:
    """What is known of one video after it was tried.

    Attributes:
        path: The file.
        reason: Why it cannot be read; '' if it can.
        frames: Number of frames.
        size: Height and width of the frames, in pixels.
        seconds: Time that the trial took.
    """
    path: str
    reason: str = ''
    frames: int = 0
    size: Tuple[int, int] = (0, 0)
    seconds: float = 0.


def cut_off(path: str) -> str:
    """What is missing of an AVI file, which states its own length; '' if nothing is, or the file is no AVI. Decoders do
    not tell."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path} is no file')
    with open(path, 'rb') as file:
        head = file.read(12)
    stated, found = int.from_bytes(head[4:8], 'little') + 8, os.path.getsize(path)
    # all ones: written in one go, as to a pipe, so that nobody could go back and state the length
    if head[:4] != b'RIFF' or stated >= 0xFFFFFFFF or stated <= found + 1024:
        return ''
    return f'it is cut off: {found:,} of {stated:,} bytes are there'


def _try(path: str, decoder: str, whole: bool) -> Probe:
    reader = open_video(path, decoder, quick=not whole)
    index = getattr(reader.reader, 'index', None)
    lost = cut_off(path)
    if not lost and index is not None and index.announced - index.held > SLACK:
        lost = f'it is cut off: {index.held} of {index.announced} frames are there'
    if lost:
        return Probe(path, lost, reader.total)
    wanted = range(reader.total if whole else min(FIRST, reader.total))
    height, width = reader.read(wanted, lambda image: np.array(image.shape[:2]))[0].tolist()
    counted = reader.total if whole or index is not None else 0
    return Probe(path, '', counted, (height, width))


def probe(path: str, level: str, decoder: str) -> Probe:
    """Try one video in this process.

    Args:
        path: The file.
        level: 'exists' (there and not empty), 'open' (the first frames decode) or 'decode' (all frames decode).
        decoder: 'auto', 'decord', 'pyav' or 'opencv'.
    """
    start = time.perf_counter()
    if not os.path.isfile(path):
        return Probe(path, 'no such file')
    if os.path.getsize(path) == 0:
        return Probe(path, 'the file is empty')
    if level == 'exists':
        return Probe(path)
    try:
        found = _try(path, decoder, level == 'decode')
    except VideoError as error:
        found = Probe(path, str(error))
    return Probe(path, found.reason, found.frames, found.size, time.perf_counter() - start)
