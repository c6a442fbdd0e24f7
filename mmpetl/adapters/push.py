# SPDX-License-Identifier: Apache-2.0
"""An adapter onto the Hugging Face hub, with a page that is written from its header."""

import os
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Optional, Sequence, Union

from torch import nn

from ..names import path_below
from ..weights import adapter_file
from ..weights.hub import ADAPTER, HubError, library, no_network, parse_address, text_of, unreachable, without_token
from ..weights.hub_card import MARK, card, check_words
from .files import save_adapter


def push(adapter: Union[nn.Module, str, 'os.PathLike[str]'], repo: str, file: str = ADAPTER, private: bool = False,
         revision: Optional[str] = None, message: str = '', licence: str = '', base_model: str = '', config: str = '',
         tags: Sequence[str] = (), token: Optional[str] = None, **facts: Any) -> str:
    """Put an adapter onto the hub, and the page ``README.md`` beside it.

    The repository is made if it is not there. The page is written from the header alone and never says a figure that
    the header lacks; a page that somebody else wrote is left as it is.

    Args:
        adapter: Adapter file, or a model of which it is made.
        repo: ``user/repo``.
        file: Name in the repository, ``*.safetensors``.
        private: Make a new repository private.
        revision: Branch; default main.
        message: Of the commit.
        licence: Identifier of the adapter's licence, such as 'apache-2.0'.
        base_model: Name of the base on the hub, where the header does not know it.
        config: Config with which it was trained, for the page: a shipped one's name, or a file's.
        tags: Further tags.
        token: Instead of the one with which the user has logged in; never printed.
        **facts: For a model: ``name``, ``classes``, ``metrics`` ..., see :func:`save_adapter`.

    Returns:
        ``hf://user/repo@commit``, with the file where it has another name: what :func:`load_adapter` takes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is no whole adapter file, or a name does not fit; nothing is sent.
        HubError: If the hub refuses.
    """
    address = f'hf://{repo}' + (f'@{revision}' if revision else '')
    at = parse_address(address)
    path_below(file, 'file')
    if not file.endswith('.safetensors') or at.file:
        raise ValueError(f'push to {address}, file={file!r:.80}: give user/repo, and a file named *.safetensors')
    check_words(licence, base_model, tags)
    with _file_of(adapter, facts) as path:
        tensors, header = adapter_file.load(path)
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        text = card(header, shapes, repo, file, licence, base_model, config, tags)
        commit = _send(address, repo, file, path, text, private, revision, message, token)
    return f'hf://{repo}@{commit}' + ('' if file == ADAPTER else f'/{file}')


@contextmanager
def _file_of(adapter: Any, facts: Any) -> Iterator[str]:
    if isinstance(adapter, nn.Module):
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / ADAPTER)
            save_adapter(adapter, path, **facts)
            yield path
        return
    if facts:
        raise ValueError(f'{", ".join(facts)}: these go into the header of a model; the file has one already')
    if not isinstance(adapter, (str, os.PathLike)):
        raise ValueError(f'push takes an adapter file or a model, not a {type(adapter).__name__}')
    path = os.path.expanduser(os.fspath(adapter))
    if os.path.isdir(path):
        raise ValueError(f'{path} is a folder: name an adapter file (folders of peft are pushed by peft)')
    yield path


def _send(address: str, repo: str, file: str, path: str, text: str, private: bool, revision: Optional[str],
          message: str, token: Optional[str]) -> str:
    """Create the repository, send the files in one commit; the commit."""
    hub = library()
    try:
        api = hub.HfApi(token=token)
        api.create_repo(repo, private=private, exist_ok=True)
        if revision and revision != 'main':
            api.create_branch(repo, branch=revision, exist_ok=True)
        operations = [hub.CommitOperationAdd(file, path)]
        before = text_of(f'hf://{repo}@{revision or "main"}', 'README.md', token)
        # Never over a page that somebody wrote by hand.
        if before is None or MARK in before:
            operations.append(hub.CommitOperationAdd('README.md', text.encode()))
        done = api.create_commit(repo, operations, revision=revision,
                                 commit_message=message or f'{file}: adapter written by mmpetl')
    except HubError:
        raise
    except Exception as error:  # of the network library, whose names change with huggingface_hub
        said = ' '.join(without_token(str(error).replace(token or '\0', '***')).split())
        status = getattr(getattr(error, 'response', None), 'status_code', None)
        if status is None and no_network(error):
            raise unreachable(address, error) from None
        mend = 'log in with a token that may write: hf auth login' if status in (401, 403) else 'try again'
        raise HubError(address, f'it cannot be pushed: {said:.200}', mend) from None
    return str(done.oid)
