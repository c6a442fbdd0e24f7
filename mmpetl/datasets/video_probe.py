"""Find videos that cannot be read, within a time limit for each, even where a decoder hangs or crashes."""

import multiprocessing
import os
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Callable, Dict, List, Optional, Sequence, Tuple

from ..sites import nearest
from .video_io import VideoDecode, VideoError, VideoInit, reason

LEVELS = ('exists', 'open', 'decode')


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


def _all_frames(results: dict) -> int:
    """Decode every frame of an opened video; returns how many there were. Holds a few frames at a time."""
    reader, total = results['video_reader'], results['total_frames']
    if results['decoder'] == 'decord':
        for first in range(0, total, 32):
            reader.get_batch(range(first, min(first + 32, total)))
        return total
    if results['decoder'] == 'pyav':
        return sum(1 for _ in reader.decode(video=0))
    return sum(1 for frame in reader if frame is not None)


def probe(path: str, level: str = 'decode', decoder: str = 'auto') -> Probe:
    """Try one video in this process.

    Args:
        path: The file.
        level: 'exists' (there and not empty), 'open' (the first frame decodes) or 'decode' (all frames decode).
        decoder: See :class:`mmpetl.datasets.video_io.VideoInit`.

    Raises:
        ValueError: If the level or the decoder is unknown.
    """
    if level not in LEVELS:
        raise ValueError(f'unknown level of checking {level!r}' + nearest(level, LEVELS))
    start = time.perf_counter()
    if not os.path.isfile(path):
        return Probe(path, 'no such file')
    if os.path.getsize(path) == 0:
        return Probe(path, 'the file is empty')
    if level == 'exists':
        return Probe(path)
    try:
        results = VideoInit(decoder)(dict(filename=path))
        total = results['total_frames']
        if level == 'decode':
            found = _all_frames(results)
            if found < total:
                return Probe(path, f'only {found} of {total} frames can be decoded', total, seconds=time.perf_counter() - start)
            results = VideoInit(decoder)(results)
        size = VideoDecode()(dict(results, frame_inds=[0]))['img_shape']
    except VideoError as error:
        return Probe(path, str(error).removeprefix(f'{path}: '), seconds=time.perf_counter() - start)
    except Exception as error:  # a decoder's own error class while all frames are read
        return Probe(path, f'not all frames can be decoded: {reason(error)}', seconds=time.perf_counter() - start)
    return Probe(path, '', total, (int(size[0]), int(size[1])), time.perf_counter() - start)


def _serve(connection: Connection, level: str, decoder: str) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the decoders write dozens of lines about a damaged file
    while True:
        path = connection.recv()
        if path is None:
            return
        connection.send(probe(path, level, decoder))


@dataclass
class _Worker:
    """A process that tries one video after the other; it is ended and replaced when a decoder hangs."""
    level: str
    decoder: str
    connection: Optional[Connection] = None
    process: Optional[multiprocessing.Process] = None
    path: str = ''
    deadline: float = field(default=0.)

    def give(self, path: str, timeout: float) -> None:
        if self.process is None:
            self.connection, theirs = multiprocessing.Pipe()
            self.process = multiprocessing.Process(target=_serve, args=(theirs, self.level, self.decoder), daemon=True)
            self.process.start()
            theirs.close()
        self.path, self.deadline = path, time.monotonic() + timeout
        self.connection.send(path)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.connection.close()
        self.process = self.connection = None


def _collect(busy: Dict[Connection, _Worker], timeout: float) -> List[Tuple[_Worker, Probe]]:
    """Wait until a worker answers, dies or passes its deadline."""
    now = time.monotonic()
    ready = wait(list(busy), timeout=max(0., min(worker.deadline for worker in busy.values()) - now))
    done = []
    for connection, worker in list(busy.items()):
        if connection in ready:
            try:
                result = connection.recv()
            except EOFError:
                worker.end()
                result = Probe(worker.path, 'the decoder crashed')
        elif time.monotonic() >= worker.deadline:
            worker.end()
            result = Probe(worker.path, f'it is not decoded within {timeout:g} s', seconds=timeout)
        else:
            continue
        del busy[connection]
        done.append((worker, result))
    return done


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
        workers: Processes.
        progress: Called with every result, in the order in which they come.

    Returns:
        One result per path, in the order of ``paths``.
    """
    report = progress or (lambda result: None)
    if level == 'exists':
        found = []
        for path in paths:
            found.append(probe(path, level))
            report(found[-1])
        return found
    pool = [_Worker(level, decoder) for _ in range(max(1, min(workers, len(paths))))]
    results: Dict[str, Probe] = {}
    waiting = list(dict.fromkeys(paths))[::-1]
    idle, busy = list(pool), {}
    try:
        while waiting or busy:
            while idle and waiting:
                worker = idle.pop()
                worker.give(waiting.pop(), timeout)
                busy[worker.connection] = worker
            for worker, result in _collect(busy, timeout):
                results[result.path] = result
                report(result)
                idle.append(worker)
    finally:
        for worker in pool:
            worker.end()
    return [results[path] for path in paths]
