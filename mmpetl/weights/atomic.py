# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are never half there, and what dead processes left of them.

Everything is written under a temporary name that says which process writes it, on which machine, and takes its name
when it is complete. A process that was killed leaves its part; the next one that writes into the same folder removes
it. Parts of living processes are left alone.
"""

import fcntl
import json
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

#: A part of a process that cannot be asked (another machine, an older form of name) is dead after so many seconds
#: without a byte written.
SILENT = 24 * 3600.
_PART = re.compile(r'\.(?P<host>[A-Za-z0-9-]+)~(?P<pid>\d+)~(?P<start>\d+)\.\w+\.part$')
_UNNAMED = re.compile(r'^\..+\.\w{8}\.part$')
_swept: set[tuple[int, str]] = set()


# -- who writes -------------------------------------------------------------------------------------------------------


@lru_cache
def _host() -> str:
    """This machine and its space of process numbers: containers of one machine may share folders and host names."""
    try:
        space = str(os.stat('/proc/self/ns/pid').st_ino)
    except OSError:
        space = '0'
    return re.sub(r'[^A-Za-z0-9]', '-', socket.gethostname())[:40] + '-' + space


def started(pid: int) -> int | None:
    """When a process of this machine started, in clock ticks since boot; None if there is none (or no /proc)."""
    try:
        with open(f'/proc/{pid}/stat') as file:
            # the name in brackets may hold blanks and brackets itself
            fields = file.read().rpartition(')')[2].split()
    except OSError:
        return None
    return None if fields[0] in 'ZX' else int(fields[19])  # a killed child stays a zombie until its parent asks


def _prefix(name: str) -> str:
    # File names have 255 bytes, and the marks behind need their share.
    name = name.encode()[:100].decode(errors='ignore')
    return f'.{name}.{_host()}~{os.getpid()}~{started(os.getpid()) or 0}.'


def _is_dead(path: Path) -> bool:
    match = _PART.search(path.name)
    if match and match['host'] == _host():
        if os.path.isdir('/proc/self'):
            # Numbers of processes are given again; together with the start they are not.
            return started(int(match['pid'])) != int(match['start'])
        return False
    # lstat: a link's target says nothing about who writes here.
    newest = max((p.lstat().st_mtime for p in [path, *(path.rglob('*') if path.is_dir() else ())]), default=0.)
    return bool(match or _UNNAMED.match(path.name)) and time.time() - newest > SILENT


def remove_dead_parts(folder: str | os.PathLike[str]) -> list[str]:
    """Remove the temporary files and folders in ``folder`` whose process is gone.

    Returns:
        list[str]: Their names.
    """
    removed = []
    with os.scandir(folder) as entries:
        parts = [Path(entry.path) for entry in entries if entry.name.endswith('.part') and entry.name[0] == '.']
    for path in parts:
        try:
            if not _is_dead(path):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except OSError:  # another process was quicker, or it is not ours to remove
            continue
        removed.append(path.name)
    return removed


def _sweep(folder: str) -> None:
    """Remove dead parts once per process and folder."""
    # With the process: a fork inherits this set, but not what has died since.
    key = os.getpid(), folder
    if key not in _swept:
        _swept.add(key)
        remove_dead_parts(folder)


# -- files ------------------------------------------------------------------------------------------------------------


def atomic_write(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """Write a file so that at every moment the old content or the new one is there, never a part.

    Args:
        path (str | PathLike): Destination; missing folders are made. A link is followed, its target replaced.
        write (Callable[[BinaryIO], Any]): Writes the whole content into the open binary file that it is given.

    Raises:
        OSError: With the name of the destination, if it cannot be written.
    """
    # Replacing a link by a file would cut it from what it points to.
    target = os.path.realpath(os.path.expanduser(os.fspath(path)))
    folder, name = os.path.split(target)
    os.makedirs(folder, exist_ok=True)
    _sweep(folder)
    try:
        handle, temporary = tempfile.mkstemp(prefix=_prefix(name), suffix='.part', dir=folder)
    except OSError as error:
        error.filename = target  # nobody asked for the part
        raise
    try:
        with os.fdopen(handle, 'wb') as file:
            write(file)
            file.flush()
            # Before the rename: after a power cut the name must not point to an empty file.
            os.fsync(file.fileno())
        os.chmod(temporary, _mode(target))
        os.replace(temporary, target)
    except BaseException as error:
        if os.path.exists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno and error.filename in (None, temporary):
            error.filename = target  # a full disk does not say what was being written
        raise
    sync_folder(folder)


def _mode(target: str) -> int:
    """Permissions of the file to be replaced, or those that ``open`` would give a new one (mkstemp gives 0600)."""
    if os.path.exists(target):
        return os.stat(target).st_mode & 0o777
    mask = os.umask(0)
    # There is no way to ask for the mask but to set one.
    os.umask(mask)
    return 0o666 & ~mask


def sync_folder(folder: str) -> None:
    """Make the rename itself survive a power cut, where the system lets folders be opened."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write ``obj`` as indented JSON, atomically; a value JSON cannot hold is a TypeError or ValueError and writes
    nothing."""
    data = (json.dumps(obj, indent=2, ensure_ascii=False, allow_nan=False) + '\n').encode()
    atomic_write(path, lambda file: file.write(data))


# -- folders ----------------------------------------------------------------------------------------------------------


def part_of(target: str | os.PathLike[str]) -> Path:
    """A free temporary name beside ``target`` that tells which process uses it; dead neighbours are removed."""
    target = Path(target)
    if target.parent.is_dir():
        _sweep(os.path.realpath(target.parent))
    return target.with_name(f'{_prefix(target.name)}{uuid.uuid4().hex[:8]}.part')


@contextmanager
def part_folder(folder: str | os.PathLike[str], name: str = 'folder') -> Iterator[Path]:
    """A new empty folder inside ``folder`` for what is not complete yet; it is gone afterwards.

    Args:
        folder: Existing folder, on whose file system the part lies.
        name: What it will become, for those who look into the folder.
    """
    _sweep(os.path.realpath(folder))
    part = Path(tempfile.mkdtemp(prefix=_prefix(name), suffix='.part', dir=folder))
    try:
        yield part
    finally:
        shutil.rmtree(part, ignore_errors=True)


def into_folder(target: str | os.PathLike[str], fill: Callable[[Path], None]) -> Path:
    """Make a folder that is either complete or not there: ``fill`` writes into a neighbour, which then takes the name.

    Args:
        target: The folder; an older one of that name is replaced.
        fill: Called with the empty neighbour.

    Returns:
        Path: The folder.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with part_folder(target.parent, target.name) as part:
        new = part / 'new'
        new.mkdir()
        fill(new)
        # Another process may fill the name between the two renames; whoever is last wins, and no folder is
        # ever half there.
        for number in range(100):
            try:
                os.replace(new, target)  # only an empty folder, or none, can be replaced at once
                break
            except OSError:
                if not target.is_dir() or number == 99:
                    raise
                try:
                    os.replace(target, part / f'old{number}')
                except FileNotFoundError:  # another process took it away at the same moment
                    continue
    return target


@contextmanager
def locked(path: str | os.PathLike[str]) -> Iterator[None]:
    """Within the context no other process is within that of the same path; a lock ends with its process.

    Args:
        path: A file that serves as the lock; it is there only as long as somebody holds it.
    """
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(handle, fcntl.LOCK_EX)
        try:
            if os.path.samestat(os.fstat(handle), os.stat(path)):
                break  # otherwise the holder before removed the file for which this process waited
        except FileNotFoundError:
            pass
        os.close(handle)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):  # somebody has removed the folder
            os.unlink(path)
        os.close(handle)
