# SPDX-License-Identifier: Apache-2.0
"""Download a file from its address: resumed where it was cut, with a progress bar, checked before it takes its name."""

import hashlib
import os
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Callable, Optional, Sequence, Tuple

from .atomic import locked
from .reading import open_regular

BLOCK = 1 << 20


class DownloadError(OSError):
    """A file cannot be had; the message says which, from where, and where to put it by hand."""


class Bar:
    """Progress on a terminal; one line at the end elsewhere."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.shown = name, total, -1

    def __call__(self, done: int) -> None:
        percent = int(100 * done / self.total) if self.total else 0
        # A log file gets no bar: every step would be a line of it.
        if sys.stderr.isatty() and percent != self.shown:
            bar = '#' * (percent // 4)
            print(f'\r{self.name} [{bar:25}] {done / 1e6:,.1f} of {self.total / 1e6:,.1f} MB', end='', file=sys.stderr)
            self.shown = percent

    def close(self) -> None:
        if self.shown >= 0:
            print(file=sys.stderr)


def digest_of(path: Path, algorithm: str) -> str:
    """Digest of a file in hexadecimal."""
    found = hashlib.new(algorithm)
    with open_regular(path) as file:
        while block := file.read(BLOCK):
            found.update(block)
    return found.hexdigest()


def _request(url: str, start: int, timeout: float) -> Tuple[Any, int]:
    """(open response, first byte that it sends)."""
    headers = {'User-Agent': 'mmpetl'}
    if start:
        headers['Range'] = f'bytes={start}-'
    response = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout)
    # A server that knows no ranges sends everything from the beginning, with 200.
    return response, start if response.status == 206 else 0


def _receive(url: str, part: Path, timeout: float, say: Callable[[str], None]) -> None:
    """Append to ``part`` what is missing of it."""
    # What a cut download left.
    start = part.stat().st_size if part.is_file() else 0
    try:
        response, start = _request(url, start, timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416 and start:  # nothing is missing, or the file there is another: its digest tells
            return
        raise
    with response:
        length = int(response.headers.get('Content-Length') or 0)
        total = start + length if length else 0
        if start:
            say(f'{part.name}: going on after {start / 1e6:,.1f} MB')
        bar, done = Bar(part.name.removesuffix('.part'), total), start
        with open(part, 'ab' if start else 'wb') as file:
            while block := response.read(BLOCK):
                file.write(block)
                done += len(block)
                bar(done)
        bar.close()
    # A broken connection may end a read quietly.
    if total and done < total:
        raise OSError(f'the connection ended after {done:,} of {total:,} bytes')


def download(urls: Sequence[str], target: Path, digest: Tuple[str, str] = ('', ''), size: int = 0,
             check: Optional[Callable[[Path], None]] = None, timeout: float = 60.,
             say: Callable[[str], None] = print) -> Path:
    """A file from the first of several addresses that serves it.

    A download that was cut lies beside the target as ``.part``; the next call goes on there. A file that is there and
    right is left alone.

    Args:
        urls: Addresses, tried in this order (mirrors first, where the user names some).
        target: Where the file goes.
        digest: (algorithm, beginning of the digest in hexadecimal), or ('', '') where none is published.
        size: Expected bytes; 0 where not published.
        check: Further check of the complete file; raises ``ValueError``.
        timeout: Seconds without an answer.
        say: Called with one line about what is done.

    Raises:
        DownloadError: If no address serves the right file.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # two processes must not append to one part; who waits here finds the file complete
    with locked(target.with_name(f'.{target.name}.lock')):
        return _download(urls, target, digest, size, check, timeout, say)


def _download(urls: Sequence[str], target: Path, digest: Tuple[str, str], size: int,
              check: Optional[Callable[[Path], None]], timeout: float, say: Callable[[str], None]) -> Path:
    if target.is_file():
        # A file that is there is looked at, too: it may be an old or a broken one.
        wrong = _wrong(target, digest, size, check)
        if not wrong:
            return target
        # Never overwritten: it may be the user's own.
        raise DownloadError(f'{target} is there but is not the official file ({wrong}): remove it and run again')
    part, reasons = target.with_name(target.name + '.part'), []
    for url in urls:
        say(f'{target.name} from {url}')
        try:
            _receive(url, part, timeout, say)
        except (OSError, ValueError) as error:
            reasons.append(f'{url}: {getattr(error, "reason", None) or error}')
            continue
        wrong = _wrong(part, digest, size, check)
        if not wrong:
            os.replace(part, target)
            return target
        # Of another file nothing can be resumed.
        part.unlink()
        reasons.append(f'{url} serves another file ({wrong})')
    raise DownloadError(f'cannot fetch {target.name} ({"; ".join(reasons)}): put the file at {target} by hand, or name '
                        'a mirror with --mirror; a download that was cut goes on when run again')


def _wrong(path: Path, digest: Tuple[str, str], size: int, check: Optional[Callable[[Path], None]]) -> str:
    """What is wrong with a complete file; empty where nothing is."""
    if size and path.stat().st_size != size:
        return f'{path.stat().st_size:,} bytes, expected {size:,}'
    algorithm, start = digest
    if algorithm:
        found = digest_of(path, algorithm)
        # Publishers often give only the first digits, in the file's name.
        if not found.startswith(start):
            return f'its {algorithm.upper()} is {found}, published {start}{"" if len(start) >= 32 else "..."}'
    try:
        if check:
            check(path)
    except ValueError as error:
        return str(error)
    return ''
