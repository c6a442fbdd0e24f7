# SPDX-License-Identifier: Apache-2.0
"""Several workers on one folder: who runs which trial. Works on a shared file system and survives killed workers."""

import json
import os
import socket
import threading
import time
import uuid
from typing import Any, Dict, Optional

from ..weights.atomic import atomic_write
from ..weights.guards import parse_json
from ..weights.reading import read_text

#: Seconds between signs of life, and after which a silent worker is taken for dead.
#: The second outlasts the minute for which NFS may show an old time stamp.
BEAT, DEAD = 15., 120.


class Claim:
    """The right to run the trial of a folder, held while the context lasts.

    The claim is a file that names host and process; its time stamp is renewed as a sign of life. A claim of a process
    that is gone (same host), or silent for :data:`DEAD` seconds, is taken over.

    Args:
        folder: The trial's folder.
    """

    def __init__(self, folder: str) -> None:
        self.path = os.path.join(folder, 'claim')
        self.token = json.dumps(
            dict(host=socket.gethostname(), pid=os.getpid(), start=_started(os.getpid()), token=uuid.uuid4().hex))
        self._stop: Optional[threading.Event] = None

    def acquire(self) -> bool:
        """Try to take the claim; False if a living worker holds it."""
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        try:
            # of several workers on several machines, the file system lets one make the file
            handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            with os.fdopen(handle, 'w') as file:
                file.write(self.token)
        except FileExistsError:
            if not self._stale():
                return False
            atomic_write(self.path, lambda file: file.write(self.token.encode()))
            time.sleep(0.3)  # of several workers that take over at once, the last to write keeps it
            if self._read() != self.token:
                return False
        self._stop = threading.Event()
        threading.Thread(target=self._beat, args=(self._stop, ), daemon=True).start()
        return True

    def release(self) -> None:
        """Give the claim back."""
        if self._stop is not None:
            self._stop.set()
            self._stop = None
            if self._read() == self.token:
                os.unlink(self.path)

    def __enter__(self) -> 'Claim':
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(BEAT):
            try:
                os.utime(self.path)
            except OSError:
                return

    def _read(self) -> str:
        try:
            return read_text(self.path)
        except (OSError, ValueError):
            return ''

    def _stale(self) -> bool:
        try:
            age = time.time() - os.path.getmtime(self.path)
            owner = parse_json(self._read())
            host, pid = str(owner['host']), int(owner['pid'])
        except OSError:
            return False  # given back in this moment; the next look will find it free
        except (ValueError, KeyError, TypeError):
            return age > BEAT  # being written, or cut off while being written
        if age > DEAD:
            return True
        return host == socket.gethostname() and not _alive(dict(owner, pid=pid))


def _started(pid: int) -> Optional[str]:
    """When a process of this machine started, in the kernel's ticks; None if it is gone (or only waits to be
    reaped)."""
    try:
        with open(f'/proc/{pid}/stat') as file:
            # The name, in brackets, may hold blanks: count the fields from behind it. State is the first, the start the
            # twentieth.
            fields = file.read().rpartition(')')[2].split()
    except OSError:
        return None
    return None if fields[0] in 'ZX' else fields[19]


def _alive(owner: Dict[str, Any]) -> bool:
    """Whether the process that wrote a claim on this machine still runs."""
    pid = int(owner['pid'])
    if os.path.isdir('/proc/self'):
        return _started(pid) is not None and _started(pid) == owner.get('start')
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
