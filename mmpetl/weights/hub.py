# SPDX-License-Identifier: Apache-2.0
"""Adapters of the Hugging Face hub: ``hf://user/repo[@revision][/file]`` as a file or folder on this machine.

Everything that takes an adapter asks :func:`local_path`. The files lie in the cache of huggingface_hub, in its own
layout, so that its programs list and remove them, and what these have fetched is found. What a server answers is
checked before it becomes a path, and what it sends before it takes its name: the library itself (2.4.0) puts the
ETag of an answer into a path without its quotes, and otherwise as it comes.
"""

import hashlib
import os
import re
import socket
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Optional
from urllib.parse import unquote, urlsplit

from ..names import path_below, printable
from .atomic import atomic_write, locked, part_of
from .download import Bar
from .reading import as_path, open_regular

PREFIX = 'hf://'
#: Largest adapter, and largest other file, that is fetched (bytes).
MAX_BYTES, MAX_TEXT_BYTES = 4 << 30, 1 << 20
ADAPTER, PEFT_CONFIG, PEFT_TENSORS = 'adapter.safetensors', 'adapter_config.json', 'adapter_model.safetensors'
#: As older versions of peft save.
PEFT_PICKLED = 'adapter_model.bin'

_ADDRESS = re.compile(r'hf://(?P<repo>[^/@]*/[^/@]*)(?:@(?P<revision>refs/pr/\d+|[^/]*))?(?:/(?P<file>.*))?', re.DOTALL)
_PART = re.compile(r'[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_-])?')
_REVISION = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*(?:/[A-Za-z0-9][A-Za-z0-9._-]*)*')
_COMMIT, _DIGEST = re.compile('[0-9a-f]{40}'), re.compile('(?:[0-9a-f]{40}|[0-9a-f]{64})')
#: Files that would have to be unpickled, or hold no adapter.
_OTHER_FILES = ('.pth', '.pt', '.bin', '.ckpt', '.pkl', '.pickle', '.npz', '.npy', '.onnx', '.h5', '.msgpack', '.zip',
                '.json', '.py', '.md', '.txt', '.yaml', '.yml', '.gguf')


class HubError(OSError):
    """Something of the hub cannot be had; the message is one line that names the address."""

    def __init__(self, address: str, cause: str, mend: str = '') -> None:
        text = f'{address}: {cause}' + (f': {mend}' if mend else '')
        super().__init__(printable(' '.join(without_token(text).split())))


class Address(NamedTuple):
    """``hf://user/repo[@revision][/file]``; ``file`` may be a folder, '' for the top."""
    repo: str
    revision: str
    file: str


class Answer(NamedTuple):
    """What the hub says of one file."""
    commit: str
    digest: str
    size: int


def is_hub(path: Any) -> bool:
    """Whether a path is an address of the hub."""
    return isinstance(path, (str, os.PathLike)) and os.fspath(path)[:5] == PREFIX


def parse_address(address: str) -> Address:
    """The parts of an address.

    Raises:
        ValueError: If it is none, or a part could lead elsewhere.
    """
    form = 'write hf://user/repo, hf://user/repo@revision or hf://user/repo@revision/file.safetensors'
    match = _ADDRESS.fullmatch(address)
    parts = match['repo'].split('/') if match else []
    if match is None or not all(_PART.fullmatch(p) and '--' not in p and '..' not in p for p in parts):
        raise ValueError(f'{printable(address)[:200]} is no address of the hub: {form}')
    revision = unquote(match['revision']) if match['revision'] is not None else 'main'
    if not _REVISION.fullmatch(revision) or '..' in revision or len(revision) > 200:
        raise ValueError(f'{printable(address)[:200]}: {revision!r:.80} is no revision: name a branch, tag or commit')
    file = (match['file'] or '').removesuffix('/')
    if file:
        path_below(file, f'{printable(address)[:200]}: file')
        if not all(p and p != '.' and len(p) <= 200 for p in file.split('/')) or '\\' in file:
            raise ValueError(f'{printable(address)[:200]}: {file!r:.80} is no path in a repository: {form}')
    if file.lower().endswith(_OTHER_FILES):
        raise ValueError(f'{printable(address)[:200]}: only adapters (*.safetensors) and folders of peft are read from '
                         'the hub: name one of these')
    return Address(match['repo'], revision, file)


def local_path(path: Any) -> str:
    """A file or folder on this machine for whatever names an adapter.

    Args:
        path: A path, returned as text with ``~`` expanded, or ``hf://user/repo[@revision][/file]``. Without a file the
            repository's ``adapter.safetensors`` is meant, else the folder of peft that it is. A revision that is a
            whole commit is fetched once and never asked for again; for others the hub is asked, and where it cannot be
            reached, or ``HF_HUB_OFFLINE`` is set, the commit that was fetched last is taken, with a line in the log.

    Returns:
        The path of an adapter file, or of a folder that holds ``adapter_config.json`` and
        ``adapter_model.safetensors``.

    Raises:
        ValueError: If the address is none.
        HubError: If it cannot be had, or the server sends something else than it says.
    """
    if not is_hub(path):
        return as_path(path)
    text = os.fspath(path)
    address = parse_address(text)
    if address.file.endswith('.safetensors') and os.path.basename(address.file) != PEFT_TENSORS:
        found = _file(text, address, address.file, MAX_BYTES)
        if found is None:
            raise HubError(text, f'there is no {address.file} at {address.revision}', 'look at the list of its files')
        return str(found)
    folder = os.path.dirname(address.file) if address.file.endswith('.safetensors') else address.file
    below = f'{folder}/' if folder else ''
    if not address.file.endswith(PEFT_TENSORS):
        found = _file(text, address, below + ADAPTER, MAX_BYTES)
        if found is not None:
            return str(found)
    config = _file(text, address, below + PEFT_CONFIG, MAX_TEXT_BYTES)
    if config is None:
        raise HubError(text, f'it holds neither {below}{ADAPTER} nor {below}{PEFT_CONFIG}',
                       f'name the file: hf://{address.repo}/FILE.safetensors')
    # Both of one commit, whatever is pushed in between.
    commit = config.relative_to(_storage(address.repo) / 'snapshots').parts[0]
    pinned = address._replace(revision=commit)
    if all(_file(text, pinned, below + name, MAX_BYTES) is None for name in (PEFT_TENSORS, PEFT_PICKLED)):
        raise HubError(text, f'it holds {below}{PEFT_CONFIG} but neither {below}{PEFT_TENSORS} nor '
                       f'{below}{PEFT_PICKLED}', 'have it saved again')
    return str(config.parent)


def text_of(address: str, name: str, token: Optional[str] = None) -> Optional[str]:
    """A small text file of a repository as it is there now; None if there is none.

    Raises:
        HubError: If it cannot be had, or is longer than ``MAX_TEXT_BYTES``.
    """
    at = parse_address(address)
    try:
        answer = _ask(address, at, name, MAX_TEXT_BYTES, token)
    except _Unreachable as error:
        raise unreachable(address, error) from None
    if answer is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        _fetch(address, at.repo, name, answer, Path(folder), token)
        with open_regular(Path(folder) / 'blobs' / answer.digest, MAX_TEXT_BYTES) as file:
            return file.read().decode('utf-8', 'replace')


def no_network(error: BaseException) -> bool:
    """Whether an error of the network library means that nobody answered."""
    names = {cls.__name__ for cls in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError, socket.gaierror)) or bool(
        names & {'TransportError', 'ConnectionError', 'Timeout', 'OfflineModeIsEnabled'})  # of httpx and of requests


def unreachable(address: str, reason: BaseException) -> HubError:
    """What is raised where the hub does not answer: which host was asked, and how to mend it."""
    host = urlsplit(library().constants.ENDPOINT).hostname
    said = str(reason) if isinstance(reason, _Unreachable) else _reason(reason)
    return HubError(address, f'the hub at {host} cannot be reached ({said})', 'go online and give it again (a proxy is '
                    'named by HTTPS_PROXY, a hub of your own by HF_ENDPOINT, and HF_HUB_OFFLINE must not be set)')


def is_peft(path: str) -> bool:
    """Whether a path on this machine is a folder of peft."""
    return os.path.isfile(os.path.join(path, PEFT_CONFIG))


def library() -> Any:
    """huggingface_hub, imported when it is first needed.

    Raises:
        ImportError: With the command that installs it.
    """
    try:
        import huggingface_hub
    except ImportError:
        raise ImportError('hf:// needs huggingface_hub: pip install "mmpetl[hub]"') from None
    return huggingface_hub


def without_token(text: str) -> str:
    """A text in which the user's token, and whatever looks like one, is crossed out."""
    with suppress(Exception):
        token = library().get_token()
        if token:
            text = text.replace(token, '***')
    return re.sub(r'hf_[A-Za-z0-9]{8,}', '***', text)


# -- one file ---------------------------------------------------------------------------------------------------------


def _storage(repo: str) -> Path:
    library()
    from huggingface_hub import constants
    return Path(constants.HF_HUB_CACHE) / f'models--{repo.replace("/", "--")}'


def _file(address: str, at: Address, name: str, limit: int) -> Optional[Path]:
    """A file of a repository in the cache; None if the repository has none of this name.

    Raises:
        HubError: If it cannot be had.
    """
    storage = _storage(at.repo)
    if _COMMIT.fullmatch(at.revision):
        cached = _cached(storage, at.revision, name)
        if cached is not None:
            return cached
    try:
        answer = _ask(address, at, name, limit)
    except _Unreachable as error:
        commit = at.revision if _COMMIT.fullmatch(at.revision) else _known_commit(storage, at.revision)
        cached = _cached(storage, commit, name) if commit else None
        if cached is None:
            if commit and (storage / 'snapshots' / commit).is_dir():
                return None  # another file of this commit may be there
            raise HubError(address, f'the hub cannot be reached ({error}) and nothing of it is in the cache',
                           'go online once, or name a file on this machine') from None
        _say(f'{address}: the hub cannot be reached ({error}); commit {commit[:12]} of the cache is used')
        return cached
    if answer is None:
        return None
    target = storage / 'snapshots' / answer.commit / name
    if _cached(storage, answer.commit, name) is None:
        with locked(storage / '.mmpetl.lock'):
            if _cached(storage, answer.commit, name) is None:
                _fetch(address, at.repo, name, answer, storage)
    if not _COMMIT.fullmatch(at.revision):
        reference = storage / 'refs' / at.revision
        reference.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(reference, lambda file: file.write(answer.commit.encode()))
    return target


class _Unreachable(Exception):
    """No answer from the hub; the text says why."""


def _ask(address: str, at: Address, name: str, limit: int, token: Optional[str] = None) -> Optional[Answer]:
    hub = library()
    from huggingface_hub import errors
    url = hub.hf_hub_url(at.repo, name, revision=at.revision)
    try:
        found = hub.get_hf_file_metadata(url, token=token)
    except errors.GatedRepoError:
        raise HubError(address, 'access must be asked for on its page', 'then log in: hf auth login') from None
    except errors.RepositoryNotFoundError:
        raise HubError(address, f'there is no repository {at.repo}, or it is private',
                       'mind the spelling, or log in: hf auth login') from None
    except errors.RevisionNotFoundError:
        raise HubError(address, f'{at.repo} has no revision {at.revision}', 'name a branch, tag or commit') from None
    except errors.EntryNotFoundError:
        return None
    except Exception as error:  # of the network library, whose names change with huggingface_hub
        status = getattr(getattr(error, 'response', None), 'status_code', 0)
        if 400 <= status < 500 and status not in (408, 429):
            raise HubError(address, f'the hub answers {status}', 'log in if it is private: hf auth login') from None
        raise _Unreachable(_reason(error)) from None
    commit, digest, size = found.commit_hash or '', found.etag or '', found.size
    if not _COMMIT.fullmatch(commit) or not _DIGEST.fullmatch(digest):
        raise HubError(address, 'the server does not answer as the hub does: it names no commit and digest',
                       'it may be the page of a proxy; look at HF_ENDPOINT')
    if _COMMIT.fullmatch(at.revision) and commit != at.revision:
        raise HubError(address, f'the server offers commit {commit[:12]}', 'it is not the one that was asked for')
    if size is None or not 0 < size <= limit:
        shown = 'an unknown number of' if size is None else f'{size:,}'
        raise HubError(address, f'{name} has {shown} bytes; up to {limit:,} are fetched',
                       'fetch it by hand and name the file')
    return Answer(commit, digest, size)


def _fetch(address: str, repo: str, name: str, answer: Answer, storage: Path,
           token: Optional[str] = None) -> None:
    """Download one file into the cache; nothing takes its name before it is compared with its digest."""
    hub = library()
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers
    # The commit and not the branch, which may have moved.
    url = hub.hf_hub_url(repo, name, revision=answer.commit)
    headers = dict(build_hf_headers(token=token), **{'accept-encoding': 'identity'})
    blob = storage / 'blobs' / answer.digest
    blob.parent.mkdir(parents=True, exist_ok=True)
    part, bar, done = part_of(blob), Bar(os.path.basename(name), answer.size), 0
    try:
        # The library's client drops the token where a redirection leads to another server.
        with hub.get_session().stream('GET', url, headers=headers, follow_redirects=True,
                                      timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
            if response.status_code != 200:
                raise HubError(address, f'the server answers {response.status_code} in place of {name}', 'try again')
            with open(part, 'wb') as file:
                # Raw: compressed answers could grow without end.
                for block in response.iter_raw(1 << 20):
                    done += len(block)
                    if done > answer.size:
                        raise HubError(address, f'{name}: the server sends more than the {answer.size:,} bytes that '
                                       'it names', 'nothing is kept')
                    file.write(block)
                    bar(done)
        bar.close()
        if done != answer.size:
            raise HubError(address, f'{name}: the connection ended after {done:,} of {answer.size:,} bytes',
                           'try again')
        found = _digest(part, len(answer.digest))
        if found != answer.digest:
            raise HubError(address, f'{name} is not what the hub names: its digest is {found[:16]}..., not '
                           f'{answer.digest[:16]}...{_page(part)}', 'nothing is kept')
        os.replace(part, blob)
    except HubError:
        raise
    except Exception as error:
        raise HubError(address, f'{name} cannot be fetched ({_reason(error)})', 'try again') from None
    finally:
        part.unlink(missing_ok=True)
    pointer = storage / 'snapshots' / answer.commit / name
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)
    pointer.symlink_to(os.path.relpath(blob, pointer.parent))


def _cached(storage: Path, commit: str, name: str) -> Optional[Path]:
    """A whole file of the cache, or None; one that differs from the digest in its name counts as missing."""
    pointer = storage / 'snapshots' / commit / name
    if not pointer.is_file():
        return None
    blob = pointer.resolve()
    # huggingface_hub copies in place of linking on some file systems: then no digest is known.
    if _DIGEST.fullmatch(blob.name) and _digest(blob, len(blob.name)) != blob.name:
        _say(f'{blob} is altered or damaged: it is fetched again')
        return None
    return pointer


def _known_commit(storage: Path, revision: str) -> str:
    """The commit that a branch or tag was when it was last asked for, or ''."""
    with suppress(OSError, ValueError), open_regular(storage / 'refs' / revision, 1000) as file:
        found = file.read().decode('ascii').strip()
        return found if _COMMIT.fullmatch(found) else ''
    return ''


def _digest(path: Path, length: int) -> str:
    """SHA-256 of a file, as the hub names large files, or git's name of it (SHA-1), as it names small ones."""
    found = hashlib.sha256() if length == 64 else hashlib.sha1(b'blob %d\0' % path.stat().st_size)
    with open_regular(path) as file:
        while block := file.read(1 << 20):
            found.update(block)
    return found.hexdigest()


def _page(path: Path) -> str:
    with open_regular(path) as file:
        return '; it is a page' if file.read(512).lstrip().startswith(b'<') else ''


def _reason(error: BaseException) -> str:
    text = without_token(' '.join(str(error).split()))
    return f'{type(error).__name__}: {text:.160}' if text else type(error).__name__


def _say(line: str) -> None:
    from mmengine.logging import print_log
    print_log(without_token(line), 'current')
