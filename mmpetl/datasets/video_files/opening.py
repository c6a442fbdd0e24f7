# SPDX-License-Identifier: Apache-2.0
"""Open a video file by the decoder that is asked for, or by the next one where that one cannot."""

import importlib.util
import os
from typing import List, Optional, Sequence, Union

import numpy as np

from .cache import Finding, Findings
from .errors import NoDecoderError, VideoError, reason
from .other_readers import FILMS, OtherReader, open_other
from .pyav_reader import Finish, PyAVReader, four_letters

#: Decoder -> module that must be importable, in the order in which 'auto' takes them. decord is never taken by itself:
#: its frames must first be compared with PyAV's and are read in order, and PyAV needs less time for the same clip.
MODULES = {'pyav': 'av', 'opencv': 'cv2', 'decord': 'decord'}
AUTO = ('pyav', 'opencv')
#: Frames that a quick look decodes.
FIRST = 4
CURE = 'or encode it as H.264: ffmpeg -i IN -c:v libx264 OUT.mp4'

Reader = Union[PyAVReader, OtherReader, 'GuardedReader']


def installed(decoder: str) -> bool:
    """Whether a decoder's package can be imported."""
    return importlib.util.find_spec(MODULES[decoder]) is not None


class GuardedReader:
    """A reader whose decoder's own errors become one line."""

    def __init__(self, reader: Union[PyAVReader, OtherReader]) -> None:
        self.reader = reader
        self.decoder, self.total, self.fps = reader.decoder, reader.total, reader.fps

    @property
    def decoded(self) -> int:
        """Frames decoded so far."""
        return self.reader.decoded

    def read(self, indices: Sequence[int], finish: Optional[Finish] = None) -> List[np.ndarray]:
        """See :meth:`PyAVReader.read`.

        Raises:
            VideoError: If a frame cannot be decoded.
        """
        try:
            return self.reader.read(indices, finish)
        except VideoError:
            raise
        except Exception as error:  # every decoder has error classes of its own
            raise VideoError(f'{self.decoder} cannot decode it: {reason(error)}') from None

    def close(self) -> None:
        """Let the file go."""
        self.reader.close()


def codec_of(path: str) -> str:
    """Name of a film's codec, as its packets say; '' where that cannot be told."""
    if not installed('pyav'):
        return ''
    import av
    try:
        with av.open(f'file:{path}', metadata_errors='ignore') as container:
            codec = container.streams.video[0].codec_context.codec
            return str(getattr(codec, 'canonical_name', codec.name))
    except Exception:  # it is asked only to explain another failure
        return four_letters(path)


def _open(path: str, decoder: str, num_threads: int, findings: Optional[Findings], quick: bool,
          data: Optional[bytes]) -> Union[PyAVReader, OtherReader]:
    if decoder == 'pyav':
        return PyAVReader(path, data, num_threads, findings)
    if quick:
        film = FILMS[decoder](path, num_threads)
        first = sum(1 for _, _ in zip(range(FIRST), film.frames()))
        if not first:
            raise VideoError('it has no frames')
        return OtherReader(film, Finding('order', first), path, decoder)
    return open_other(path, decoder, num_threads, findings)


def _explained(path: str, decoder: str, error: Exception) -> VideoError:
    """The line for a file that one decoder cannot open: with codec and cure where the codec is the reason."""
    if isinstance(error, VideoError) and not isinstance(error, NoDecoderError):
        return error
    if decoder != 'pyav' and installed('pyav'):
        try:
            PyAVReader(path)
        except NoDecoderError:
            pass
        except VideoError as known:
            return known
        except Exception:  # then PyAV knows no better
            pass
    codec = codec_of(path) if decoder != 'pyav' else ''
    if codec:
        return VideoError(f"{decoder} cannot decode its codec, {codec}: write decoder='auto', {CURE}")
    if isinstance(error, NoDecoderError):
        return VideoError(f'{error}: pip install -U av, {CURE}')
    return VideoError(f'{decoder} cannot open it: {reason(error)}')


def open_video(path: str, decoder: str = 'auto', num_threads: int = 1, findings: Optional[Findings] = None,
               quick: bool = False, data: Optional[bytes] = None) -> GuardedReader:
    """Open a video.

    Args:
        path: The file.
        decoder: 'pyav', 'opencv', 'decord', or 'auto' for PyAV and, where that cannot read the file, OpenCV.
        num_threads: Threads that decode one file.
        findings: What is known of files; None keeps nothing.
        quick: Compare nothing, as only the first ``FIRST`` frames will be read; decord and OpenCV then count no more.
        data: The file's bytes where it lies on no local disk; PyAV alone reads them.

    Raises:
        VideoError: If it cannot be opened; the message does not name the file.
    """
    if data is None and not os.path.isfile(path):
        raise VideoError('no such file')
    if not (len(data) if data is not None else os.path.getsize(path)):
        raise VideoError('the file is empty')
    names = [name for name in AUTO if installed(name)] if decoder == 'auto' else [decoder]
    failed: List[VideoError] = []
    for name in names[:1] if data is not None else names:
        try:
            return GuardedReader(_open(path, name, num_threads, findings, quick, data))
        except Exception as error:  # every decoder has error classes of its own
            failed.append(_explained(path, name, error))
            if isinstance(error, VideoError) and not isinstance(error, NoDecoderError):
                break
    raise failed[0]  # what the decoder of the first choice says
