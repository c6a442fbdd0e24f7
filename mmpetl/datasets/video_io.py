# SPDX-License-Identifier: Apache-2.0
"""Transforms that open video files and decode the sampled frames, by PyAV, OpenCV or decord, with errors that name the
file.

Every decoder gives the frame with the asked number, upright: see :mod:`.video_files`.
"""

import logging
import os
from functools import partial
from typing import Any, Dict, List, Optional, Set

import numpy as np
from mmcv.transforms import BaseTransform
from mmengine.fileio import FileClient
from mmengine.logging import print_log

from ..registry import TRANSFORMS
from ..sites import nearest, positive
from .how_to_get import and_get
from .video_files.cache import Findings
from .video_files.errors import VideoError
from .video_files.opening import AUTO, MODULES, installed, open_video
from .video_transforms import ShortSideResize

#: Decoder -> package that brings it.
PACKAGES = {'pyav': 'av', 'opencv': 'opencv-python', 'decord': 'decord'}


def choose_decoder(decoder: str = 'auto') -> str:
    """The decoder to use: ``decoder`` itself, or for 'auto' the first of PyAV and OpenCV that is installed.

    Raises:
        ValueError: If the decoder is unknown or not installed.
    """
    if decoder == 'auto':
        found = next((name for name in AUTO if installed(name)), None)
        if found is None:
            raise ValueError('no video decoder is installed: pip install av')
        return found
    if decoder not in MODULES:
        raise ValueError(f'unknown decoder {decoder!r}' + nearest(decoder, ['auto', *MODULES]))
    if not installed(decoder):
        raise ValueError(f"decoder '{decoder}' is not installed: pip install {PACKAGES[decoder]}, or write "
                         "decoder='auto'")
    return decoder


@TRANSFORMS.register_module()
class VideoInit(BaseTransform):
    """Open a video.

    PyAV reads a film in order, or from the key frame before a clip once that was proven to give the same frames: the
    second clip of a film that would gain from it pays for the proof, two decodings of the film, and the result is kept
    in ``$MMPETL_CACHE/videos.txt``. decord and OpenCV always read in order; when they first open a file it is compared
    with PyAV (two decodings, kept too), and PyAV takes over where they give other frames.

    Args:
        decoder: 'auto' (PyAV; OpenCV for a file that PyAV cannot read, and where PyAV is not installed), 'pyav',
            'opencv' or 'decord'.
        io_backend: Where files lie, as MMEngine's ``FileClient`` names it; all but 'disk' and 'local' need PyAV.
        num_threads: Threads that decode one video.
        **kwargs: Options of the ``FileClient``.

    Raises:
        ValueError: If the decoder is unknown, not installed, or cannot read from ``io_backend``.
    """

    def __init__(self, decoder: str = 'auto', io_backend: str = 'disk', num_threads: int = 1, **kwargs: Any) -> None:
        self.decoder = decoder if decoder == 'auto' else choose_decoder(decoder)
        first = choose_decoder(decoder)
        self.num_threads = positive(num_threads, 'num_threads', type(self).__name__)
        self.files = None if io_backend in ('disk', 'local') else partial(FileClient, io_backend, **kwargs)
        if self.files is not None and first != 'pyav':
            raise ValueError(f"io_backend={io_backend!r} needs PyAV, got decoder={decoder!r}: pip install av and write "
                             "decoder='pyav'")
        self.findings = Findings()
        self._told: Set[str] = set()
        if decoder == 'auto' and first != 'pyav':
            print_log(f'PyAV is not installed: {first} reads videos from their first frame on, and nothing proves its '
                      'frames; pip install av', logger='current', level=logging.WARNING)

    def _data(self, name: str) -> Optional[bytes]:
        return None if self.files is None else bytes(self.files().get(name))

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        """``filename`` -> adds ``video_reader``, ``total_frames``, ``avg_fps`` and ``decoder``.

        Raises:
            VideoError: If the file is missing, empty, damaged, or has no picture stream.
        """
        name = results['filename']
        try:
            reader = open_video(name, self.decoder, self.num_threads, self.findings, data=self._data(name))
        except VideoError as error:
            raise VideoError(f'{name}: {error}{"" if os.path.isfile(name) else and_get(name)}') from None
        except FileNotFoundError:
            raise VideoError(f'{name}: no such file{and_get(name)}') from None
        if self.decoder not in ('auto', reader.decoder) and self.decoder not in self._told:
            self._told.add(self.decoder)
            print_log(f'{name}: {self.decoder} gives other frames than those asked for; PyAV reads this file and '
                      'others like it', logger='current', level=logging.WARNING)
        results.update(video_reader=reader, total_frames=reader.total, avg_fps=reader.fps, decoder=reader.decoder)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(decoder={self.decoder!r})'


@TRANSFORMS.register_module()
class VideoDecode(BaseTransform):
    """Decode the sampled frames, each of them once.

    Multi-view sampling asks for the same frame in several views, and short videos repeat their last one. Repeated
    frames are copies, so transforms may work in place.

    Args:
        short_side: Shrink or enlarge every frame to this short side as soon as it is decoded, as
            :class:`~mmpetl.datasets.video_transforms.ShortSideResize` does: then one frame of full size exists at a
            time, and the copies are small. None keeps the size.
    """

    def __init__(self, short_side: Optional[int] = None) -> None:
        self.resize = ShortSideResize(short_side) if short_side is not None else None

    def transform(self, results: Dict[str, Any]) -> Dict[str, Any]:
        """``frame_inds`` (F,) -> adds ``imgs`` (a list of F arrays (H, W, 3), RGB, uint8), ``img_shape``,
        ``original_shape`` (of the file).

        Raises:
            VideoError: If a frame cannot be decoded.
        """
        wanted = np.asarray(results['frame_inds']).reshape(-1)
        unique, place = np.unique(wanted, return_inverse=True)
        shapes: List[Any] = []

        def finish(frame: np.ndarray) -> np.ndarray:
            shapes.append(frame.shape[:2])
            return self.resize.apply(frame) if self.resize else frame

        reader = results['video_reader']
        try:
            frames = reader.read(unique.tolist(), finish)
        except VideoError as error:
            raise VideoError(f'{results["filename"]}: {error}') from None
        reader.close()
        results['video_reader'] = None
        results['frame_inds'] = wanted
        results['imgs'] = spread(frames, place)
        results['original_shape'], results['img_shape'] = shapes[0], results['imgs'][0].shape[:2]
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(short_side={self.resize.size if self.resize else None})'


def spread(frames: List[np.ndarray], place: np.ndarray) -> List[np.ndarray]:
    """``[frames[p] for p in place]`` in which no two entries share memory."""
    used = set()
    spread_frames = []
    for p in place.reshape(-1).tolist():
        spread_frames.append(frames[p].copy() if p in used else frames[p])
        used.add(p)
    return spread_frames
