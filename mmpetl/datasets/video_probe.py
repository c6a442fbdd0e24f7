# SPDX-License-Identifier: Apache-2.0
"""Find videos that cannot be read, within a time limit for each, even where a decoder hangs or crashes."""

import json
import os
import shlex
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Dict, List, Optional, Sequence

from rich.progress import Progress

from ..suggest import nearest
from .video_files.cache import Findings
from .video_files.probing import Probe, probe
from .video_files.serve import MARK, START
from .video_io import choose_decoder

LEVELS = ('exists', 'open', 'decode')
START_TIMEOUT = 300.
FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'video_files')
#: From so many videos on a progress bar is shown.
MANY = 200


class _Worker:
    """A process that tries one video after the other; it is ended and replaced when a decoder hangs or crashes.

    A new interpreter and not a fork: decord may hang in a forked child of a process that has used it.
    """

    def __init__(self, level: str, decoder: str) -> None:
        self.command = [sys.executable, '-c', START, FOLDER, level, decoder]
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
                f'the process that checks videos does not start; run it to see why: {shlex.join(self.command)}')

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
                 workers: Optional[int] = None,
                 progress: Optional[Callable[[Probe], None]] = None,
                 title: str = '') -> List[Probe]:
    """Try videos, each within a time limit.

    Level 'open' keeps which files opened (``$MMPETL_CACHE/videos.txt``) and does not try them again.

    Args:
        paths: The files.
        level: See :func:`probe`.
        decoder: See :class:`mmpetl.datasets.video_io.VideoInit`.
        timeout: Seconds that one video may take; ignored at level 'exists'.
        workers: Processes; None: as many as the machine has cores, at most 8. Level 'exists' needs none.
        progress: Called with every result, in the order in which they come.
        title: Shown with a progress bar where there are many videos; '' shows none.

    Returns:
        One result per path, in the order of ``paths``.

    Raises:
        ValueError: If the level or the decoder is unknown.
    """
    if level not in LEVELS:
        raise ValueError(f'unknown level of checking {level!r}' + nearest(level, LEVELS))
    choose_decoder(decoder)
    unique = list(dict.fromkeys(paths))
    pool = _Pool(level, decoder, timeout)
    count = max(1, min(workers or min(os.cpu_count() or 1, 8), len(unique)))
    results: Dict[str, Probe] = {}
    with Progress(disable=not title or level == 'exists' or len(unique) < MANY, transient=True) as bar:
        task = bar.add_task(title, total=len(unique))
        try:
            with ThreadPoolExecutor(count) as threads:
                for result in threads.map(pool.try_one, unique):
                    results[result.path] = result
                    bar.advance(task)
                    if progress:
                        progress(result)
        finally:
            pool.end()
    return [results[path] for path in paths]


class _Pool:
    """One process for every thread that tries videos."""

    def __init__(self, level: str, decoder: str, timeout: float) -> None:
        self.level, self.decoder, self.timeout = level, decoder, timeout
        self.local = threading.local()
        self.workers: List[_Worker] = []
        self.findings = Findings()

    def try_one(self, path: str) -> Probe:
        """The result for one video."""
        if self.level == 'exists' or not os.path.isfile(path) or not os.path.getsize(path):
            return probe(path, 'exists', self.decoder)
        key = Findings.key(path, f'open {self.decoder}') if self.level == 'open' else ''
        known = self.findings.get(key) if key else None
        if known and known.word == 'opens':
            return Probe(path, frames=known.frames)
        if not hasattr(self.local, 'worker'):
            self.local.worker = _Worker(self.level, self.decoder)
            self.workers.append(self.local.worker)
        result: Probe = self.local.worker.try_video(path, self.timeout)
        if key and not result.reason:
            self.findings.put(key, 'opens', result.frames)
        return result

    def end(self) -> None:
        """End the processes."""
        for worker in self.workers:
            worker.end()
