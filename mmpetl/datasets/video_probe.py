"""Find videos that cannot be read, within a time limit for each, even where a decoder hangs or crashes.

Runs as a script too, in the processes that try the videos; it imports nothing but a decoder there, so they start at
once.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Callable, List, Optional, Sequence, Tuple

if __package__:  # a script has no package, and needs no hints
    from ..suggest import nearest

LEVELS = ('exists', 'open', 'decode')
#: Opens every line that a checking process writes, so that what libraries print is not taken for an answer.
MARK = '\x1e'
START_TIMEOUT = 300.

#: What the decoders' messages mean; the first pattern that is found counts.
MEANINGS = (
    (r'cannot find video stream|tuple index out of range', 'it has no video stream'),
    (r"Error reading|processing input: '<none>'|__len__", 'it is no video, or cut off before its index'),
    (r'Failed to measure duration', 'it has no duration: it is a picture, or its metadata are damaged'),
    (r'av_read_frame|avcodec_send_packet|avfilter_graph|Invalid NAL', 'it is damaged or cut off'),
)


def reason(error: BaseException) -> str:
    """What a decoder's error means, in one line; the first line of its message where that is not known."""
    text = str(error)
    known = next((meaning for pattern, meaning in MEANINGS if re.search(pattern, text)), '')
    return known or (text.strip().splitlines() or [type(error).__name__])[0][-160:]


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


def _read(path: str, decoder: str, whole: bool) -> Tuple[int, int, Tuple[int, int]]:
    """Decode the first frame or all frames -> (frames announced, frames decoded, (height, width)). Holds a few frames
    at a time."""
    total, decoded, size = 0, 0, (0, 0)
    if decoder == 'decord':
        import decord
        reader = decord.VideoReader(path, num_threads=1)
        total = len(reader)
        for first in range(0, total if whole else min(total, 1), 32):
            frames = reader.get_batch(list(range(first, min(first + 32, total if whole else 1))))
            decoded, size = decoded + frames.shape[0], frames.shape[1:3]
    elif decoder == 'pyav':
        import av
        with av.open(path) as container:
            total = container.streams.video[0].frames
            for frame in container.decode(video=0):
                decoded, size = decoded + 1, (frame.height, frame.width)
                if not whole:
                    break
    else:
        import cv2
        capture = cv2.VideoCapture(path)
        total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
        found, frame = capture.read()
        while found:
            decoded, size = decoded + 1, frame.shape[:2]
            found, frame = capture.read() if whole else (False, None)
        if not decoded and total <= 0:
            raise ValueError('Error reading')
    return total or decoded, decoded, (int(size[0]), int(size[1]))


def _cut_off(path: str) -> str:
    """What is missing of an AVI file, which states its own length; '' if nothing is, or the file is no AVI. Decoders do
    not tell."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f'{path} is no file')
    with open(path, 'rb') as file:
        head = file.read(12)
    stated, found = int.from_bytes(head[4:8], 'little') + 8, os.path.getsize(path)
    if head[:4] != b'RIFF' or stated >= 0xFFFFFFFF or stated <= found + 1024:
        return ''
    return f'it is cut off: {found:,} of {stated:,} bytes are there'


def probe(path: str, level: str, decoder: str) -> Probe:
    """Try one video in this process.

    Args:
        path: The file.
        level: 'exists' (there and not empty), 'open' (the first frame decodes) or 'decode' (all frames decode).
        decoder: 'decord', 'pyav' or 'opencv'.
    """
    start = time.perf_counter()
    if not os.path.isfile(path):
        return Probe(path, 'no such file')
    if os.path.getsize(path) == 0:
        return Probe(path, 'the file is empty')
    if level == 'exists':
        return Probe(path)
    try:
        total, decoded, size = _read(path, decoder, level == 'decode')
    except Exception as error:  # every decoder has error classes of its own
        return Probe(path, f'{decoder} cannot decode it: {reason(error)}', seconds=time.perf_counter() - start)
    wanted = total if level == 'decode' else 1
    lost = '' if decoded else 'it has no frames'
    if decoded < wanted:
        lost = f'only {decoded} of {total} frames can be decoded'
    return Probe(path, _cut_off(path) or lost, total, size, time.perf_counter() - start)


class _Worker:
    """A process that tries one video after the other; it is ended and replaced when a decoder hangs or crashes.

    A new interpreter and not a fork: decord may hang in a forked child of a process that has used it.
    """

    def __init__(self, level: str, decoder: str) -> None:
        self.command = [sys.executable, os.path.abspath(__file__), level, decoder]
        self.process: Optional[subprocess.Popen] = None

    def _answer(self, timeout: float) -> Optional[str]:
        """The next line of the process; None if it ended, be it by itself or because ``timeout`` seconds passed."""
        timer = threading.Timer(timeout, self.process.kill)
        timer.start()
        try:
            while True:
                line = self.process.stdout.readline()
                if not line or line.startswith(MARK):
                    return line[len(MARK):] or None
        finally:
            timer.cancel()

    def _start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding='utf-8')
        if self._answer(START_TIMEOUT) is None:
            raise RuntimeError(
                f'the process that checks videos does not start; run it to see why: {" ".join(self.command)}')

    def try_video(self, path: str, timeout: float) -> Probe:
        """The result for one video, whatever the decoder does."""
        if self.process is None:
            self._start()
        start = time.monotonic()
        self.process.stdin.write(json.dumps(path) + '\n')
        self.process.stdin.flush()
        answer = self._answer(timeout)
        if answer is not None:
            found = json.loads(answer)
            return Probe(**{**found, 'size': tuple(found['size'])})
        self.end()
        seconds = time.monotonic() - start
        return Probe(
            path,
            'the decoder crashed' if seconds < timeout else f'it is not decoded within {timeout:g} s',
            seconds=seconds)

    def end(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.process = None


def check_videos(paths: Sequence[str],
                 level: str = 'decode',
                 decoder: str = 'auto',
                 timeout: float = 30.,
                 workers: int = 2,
                 progress: Optional[Callable[[Probe], None]] = None) -> List[Probe]:
    """Try videos, each within a time limit.

    Args:
        paths: The files.
        level: See :func:`probe`.
        decoder: See :class:`mmpetl.datasets.video_io.VideoInit`.
        timeout: Seconds that one video may take; ignored at level 'exists'.
        workers: Processes. Level 'exists' needs none.
        progress: Called with every result, in the order in which they come.

    Returns:
        One result per path, in the order of ``paths``.

    Raises:
        ValueError: If the level or the decoder is unknown.
    """
    from .video_io import choose_decoder
    if level not in LEVELS:
        raise ValueError(f'unknown level of checking {level!r}' + nearest(level, LEVELS))
    decoder = choose_decoder(decoder)
    report = progress or (lambda result: None)
    local = threading.local()
    pool: List[_Worker] = []

    def try_one(path: str) -> Probe:
        if level == 'exists' or not os.path.isfile(path) or not os.path.getsize(path):
            result = probe(path, 'exists', decoder)
        else:
            if not hasattr(local, 'worker'):
                local.worker = _Worker(level, decoder)
                pool.append(local.worker)
            result = local.worker.try_video(path, timeout)
        report(result)
        return result

    unique = list(dict.fromkeys(paths))
    try:
        with ThreadPoolExecutor(max(1, min(workers, len(unique)))) as threads:
            results = dict(zip(unique, threads.map(try_one, unique)))
    finally:
        for worker in pool:
            worker.end()
    return [results[path] for path in paths]


def _serve(level: str, decoder: str) -> None:
    """Answer every path on the standard input by a result on the standard output."""
    print(f'{MARK}ready', flush=True)
    for line in sys.stdin:
        print(MARK + json.dumps(asdict(probe(json.loads(line), level, decoder))), flush=True)


if __name__ == '__main__':
    here = os.path.dirname(os.path.abspath(__file__))
    # its modules must not stand in for installed ones
    sys.path[:] = [p for p in sys.path if os.path.abspath(p) != here]
    _serve(*sys.argv[1:])
