# SPDX-License-Identifier: Apache-2.0
"""What was found out about video files, kept on disk: one line a finding, appended, so that many processes can share
it."""

import hashlib
import os
from pathlib import Path
from typing import Dict, NamedTuple, Optional


class Finding(NamedTuple):
    """What is known of a file.

    Attributes:
        word: 'opens' (its first frames decode), 'seen' (read once), 'seek' (frames after a jump to a key frame equal
            those read in order), 'order' (they do not: read from the first frame on), 'pyav' (this decoder gives other
            frames than PyAV).
        frames: Number of frames; 0 where it was not counted.
    """
    word: str
    frames: int = 0


class Findings:
    """Findings by file and decoder. A file counts as another one when its path, size or time of change differs.

    Where the folder cannot be written, findings last as long as the process.

    Args:
        folder: Folder of the file ``videos.txt``; default ``$MMPETL_CACHE`` or ``~/.cache/mmpetl``.
    """

    def __init__(self, folder: Optional[str] = None) -> None:
        self.file = Path(folder or os.environ.get('MMPETL_CACHE') or '~/.cache/mmpetl').expanduser() / 'videos.txt'
        self._known: Dict[str, Finding] = {}
        self._read_to = 0

    @staticmethod
    def key(path: str, decoder: str) -> str:
        """The name under which a file's findings are kept.

        Raises:
            OSError: If there is no such file.
        """
        about = os.stat(path)
        text = f'{decoder}|{os.path.abspath(path)}|{about.st_size}|{about.st_mtime_ns}'
        return hashlib.blake2b(text.encode(errors='surrogateescape'), digest_size=12).hexdigest()

    def _update(self) -> None:
        """Read the lines that were added since the last time; a line cut off or garbled counts as none."""
        try:
            if not self.file.is_file() or self.file.stat().st_size <= self._read_to:
                return
            with open(self.file, 'rb') as file:
                file.seek(self._read_to)
                lines = file.read()
        except OSError:
            return
        whole = lines[:lines.rfind(b'\n') + 1]
        self._read_to += len(whole)
        for line in whole.decode(errors='replace').splitlines():
            parts = line.split()
            # 24: a key is a digest of 12 bytes
            if len(parts) == 3 and len(parts[0]) == 24 and parts[2].isdigit():
                self._known[parts[0]] = Finding(parts[1], int(parts[2]))

    def get(self, key: str) -> Optional[Finding]:
        """The last finding under a key; None if there is none."""
        if key not in self._known:
            self._update()
        return self._known.get(key)

    def put(self, key: str, word: str, frames: int = 0) -> None:
        """Add a finding."""
        if self._known.get(key) == Finding(word, frames):
            return
        self._known[key] = Finding(word, frames)
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            # one write in append mode: lines of several processes stand one after the other, each whole
            descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(descriptor, f'{key} {word} {frames}\n'.encode())
            finally:
                os.close(descriptor)
        except OSError:
            pass  # a folder that cannot be written costs time, not frames
