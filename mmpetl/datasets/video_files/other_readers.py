# SPDX-License-Identifier: Apache-2.0
"""Frames by decord or OpenCV, read in order; each file is compared once with PyAV, which takes over where they differ.

After a jump decord gives other frames than those asked for in many files (AVI, MPEG-TS, B-frames, open groups of
pictures), even in some with a single key frame, and OpenCV in MPEG streams and Matroska; what they announce as number
of frames does not hold for all files either.
"""

import os
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import numpy as np

from .cache import Finding, Findings
from .errors import NoDecoderError, VideoError
from .pyav_reader import Finish, PyAVReader

#: Grey levels by which the means of 8 x 8 fields may differ between two decoders (10-bit films are rounded in two
#: ways).
CLOSE = 6.
#: Part of the key of a finding: raised where the comparison becomes another one, so that files are compared anew.
RULE = 2


def fields(image: np.ndarray) -> np.ndarray:
    """Means of 8 x 8 fields of a picture, (8, 8, 3), and its size in front: (3 * 64 + 2,)."""
    height, width = image.shape[:2]
    rows, columns = (np.linspace(0, side, 9).astype(int)[:8] for side in (height, width))
    sums = np.add.reduceat(np.add.reduceat(image.astype(np.int64), rows, 0), columns, 1)
    counts = np.diff([*rows, height])[:, None, None] * np.diff([*columns, width])[None, :, None]
    return np.concatenate([[height, width], (sums / np.maximum(counts, 1)).reshape(-1)])


def same_film(ours: Sequence[np.ndarray], theirs: Sequence[np.ndarray]) -> bool:
    """Whether two decoders give the same frames in the same order, up to rounding of colours; a shift by a frame in a
    slow film is found too."""
    if len(ours) != len(theirs):
        return False
    one, two = np.stack(ours), np.stack(theirs)
    if one.shape != two.shape:  # decord gives pictures of four channels where lines are padded
        return False
    if (one[:, :2] != two[:, :2]).any() or np.abs(one - two).max() > CLOSE:
        return False
    here = np.abs(one - two).sum()
    return len(one) < 2 or bool(here <= min(np.abs(one[1:] - two[:-1]).sum(), np.abs(one[:-1] - two[1:]).sum()))


class DecordFilm:
    """A film that decord reads in order."""

    def __init__(self, path: str, num_threads: int) -> None:
        import decord
        decord.logging.set_level(decord.logging.QUIET)
        self.version = f'decord {decord.__version__}'
        self.path, self.num_threads = path, num_threads
        reader = self._opened()
        self.total, self.fps = len(reader), float(reader.get_avg_fps())

    def _opened(self) -> Any:
        import decord
        return decord.VideoReader(self.path, num_threads=self.num_threads)

    def frames(self) -> Iterator[Callable[[], np.ndarray]]:
        """A function for every frame in order that gives its picture."""
        reader = self._opened()
        for _ in range(self.total):
            frame = reader.next()
            yield frame.asnumpy


class OpenCVFilm:
    """A film that OpenCV reads in order."""

    def __init__(self, path: str, num_threads: int) -> None:
        import cv2
        self.version, self.path = f'opencv {cv2.__version__}', path
        capture = self._opened()
        self.fps, self.total = float(capture.get(cv2.CAP_PROP_FPS)), 0
        capture.release()

    def _opened(self) -> Any:
        import cv2
        capture = cv2.VideoCapture(self.path)
        if not capture.isOpened():
            raise ValueError('Error reading')
        return capture

    def frames(self) -> Iterator[Callable[[], np.ndarray]]:
        """A function for every frame in order that gives its picture."""
        capture = self._opened()
        while capture.grab():
            yield lambda: np.ascontiguousarray(capture.retrieve()[1][:, :, ::-1])
        capture.release()


FILMS: Dict[str, Callable[[str, int], Any]] = {'decord': DecordFilm, 'opencv': OpenCVFilm}


class OtherReader:
    """A video file opened by decord or OpenCV; use :func:`open_other`, which lets PyAV take over.

    Attributes: see :class:`PyAVReader`.
    """

    def __init__(self, film: Any, finding: Finding, path: str, decoder: str) -> None:
        self.film, self.finding, self.path, self.decoder = film, finding, path, decoder
        self.total, self.fps, self.decoded = finding.frames, film.fps, 0

    def read(self, indices: Sequence[int], finish: Optional[Finish] = None) -> List[np.ndarray]:
        """See :meth:`PyAVReader.read`."""
        wanted = [int(i) for i in indices]
        need, images = set(wanted), []
        for i, get in enumerate(self.film.frames()):
            self.decoded += 1
            if i in need:
                images.append(finish(get()) if finish else get())
            if i >= wanted[-1]:
                break
        if len(images) < len(wanted):
            raise VideoError(f'only {i + 1} of {self.total} frames can be decoded')
        return images

    def close(self) -> None:
        """Let the file go."""
        self.film = None


def compare(film: Any, path: str) -> Tuple[str, int]:
    """'order' where a decoder gives PyAV's frames, 'pyav' where it does not, and the number of frames; decodes the film
    twice.

    Raises:
        VideoError: If PyAV cannot read the file.
    """
    reference = PyAVReader(path)
    theirs = reference.read(range(reference.total), fields)[:reference.total]
    ours = []
    try:
        for get in film.frames():
            ours.append(fields(get()))
            if len(ours) > len(theirs):
                break
    except Exception:  # every decoder has error classes of its own
        return 'pyav', reference.total
    return 'order' if same_film(ours, theirs) else 'pyav', reference.total


def open_other(path: str, decoder: str, num_threads: int = 1,
               findings: Optional[Findings] = None) -> Union[OtherReader, PyAVReader]:
    """Open a file by decord or OpenCV, or by PyAV where these give other frames.

    Where PyAV is not installed or cannot read the file, it is read in order, unproven.

    Raises:
        VideoError: If the file cannot be read.
        Exception: The decoder's own error if it cannot open the file.
    """
    findings = findings or Findings(os.devnull)  # no folder: they last as long as this call
    film = FILMS[decoder](path, num_threads)
    key = Findings.key(path, f'{film.version} rule {RULE}')
    finding = findings.get(key)
    if finding is None or finding.word not in ('order', 'pyav'):
        try:
            word, frames = compare(film, path)
        except NoDecoderError:
            word, frames = 'order', sum(1 for _ in film.frames())
        except VideoError:
            raise
        except Exception:  # PyAV is not installed, or cannot read the file: nothing to compare with
            word, frames = 'order', sum(1 for _ in film.frames())
        if not frames:
            raise VideoError('it has no frames')
        findings.put(key, word, frames)
        finding = Finding(word, frames)
    if finding.word == 'pyav':
        return PyAVReader(path, num_threads=num_threads, findings=findings)
    return OtherReader(film, finding, path, decoder)
