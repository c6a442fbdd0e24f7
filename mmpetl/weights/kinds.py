# SPDX-License-Identifier: Apache-2.0
"""What a weight file is: the first bytes say it, and a suffix that promises a format without pickle (``.safetensors``,
``.npz``) is held to its promise."""

import difflib
import os
from collections import OrderedDict

import torch

from .bases import how_to_get
from .errors import WeightFileError
from .guards import check_zip
from .reading import open_regular

_FOREIGN = {
    b'version https://git-lfs': 'a Git LFS pointer, not the file itself',
    b'<!DOCTYPE': 'an HTML page',
    b'<html': 'an HTML page',
    b'\x1f\x8b': 'a gzip archive',
    b'\x89HDF': 'an HDF5 file',
    b'\x93NUMPY': 'a single array (.npy)',
    b'{': 'a JSON text',
}


def file_kind(path: str) -> str:
    """Say what a weight file is: ``'torch'``, ``'legacy'``, ``'torchscript'``, ``'safetensors'`` or ``'npz'``.

    Args:
        path (str): An existing file.

    Raises:
        FileNotFoundError: No such file; the message names the nearest one.
        WeightFileError: Empty, foreign or hostile content, or a suffix that promises another format.
    """
    _check_exists(path)
    size = os.path.getsize(path)
    with open_regular(path) as file:
        # Enough for every mark below.
        head = file.read(32)
    if not head:
        raise WeightFileError(path, 'empty file', 'download or copy it again')
    kind = _kind_of_bytes(path, head, size)
    suffix = os.path.splitext(path)[1].lower()
    # People open these because they hold no pickle; a pickle under such a name is an attack or a
    # mistake.
    if suffix in ('.safetensors', '.npz') and kind != suffix[1:]:
        raise WeightFileError(path, f'the name says {suffix}, the content is a {kind} file',
                              'give it the suffix of its content')
    return kind


def _kind_of_bytes(path: str, head: bytes, size: int) -> str:
    if head[:4] == b'PK\x03\x04':
        names = check_zip(path, size)
        # torch puts everything into one folder, whose name is free.
        tops = {name.split('/', 1)[1] if '/' in name else name for name in names}
        if 'data.pkl' in tops and 'constants.pkl' in tops:
            return 'torchscript'
        if 'data.pkl' in tops:
            return 'torch'
        if names and all(name.endswith('.npy') for name in names):
            return 'npz'
        raise WeightFileError(path, 'a zip archive without weights', 'give the weight file inside it')
    # Behind eight bytes of length a safetensors header is JSON.
    if size > 8 and head[8:9] == b'{':
        return 'safetensors'
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            raise WeightFileError(path, f'{what}, not a weight file',
                                  'give a .pth, .pt, .bin, .safetensors or .npz file')
    # PROTO, and a version from 2 on.
    if head[:1] == b'\x80' and head[1:2] in (b'\x02', b'\x03', b'\x04', b'\x05'):
        return 'legacy'
    if b'PK' == head[:2] or os.path.splitext(path)[1].lower() in ('.safetensors', '.npz'):
        raise WeightFileError(path, 'damaged or truncated file', 'download or copy it again')
    raise WeightFileError(path, 'not a weight file', 'give a .pth, .pt, .bin, .safetensors or .npz file')


def _check_exists(path: str) -> None:
    if os.path.isfile(path):
        return
    if not path:
        raise FileNotFoundError("'': no name of a weight file; give one")
    if os.path.exists(path) and not os.path.isdir(path):
        raise WeightFileError(path, 'no file on a disk', 'give a .pth, .pt, .bin, .safetensors or .npz file')
    if os.path.islink(path) and not os.path.isdir(path):
        raise WeightFileError(path, 'a link that leads nowhere', 'link it again, or name the file itself')
    if os.path.isdir(path):
        raise WeightFileError(path, 'a folder, not a weight file', 'name the file inside it')
    folder, name = os.path.split(os.path.abspath(path))
    known = how_to_get(path)
    if known:
        raise FileNotFoundError(f'{path} is missing{known}')
    near = difflib.get_close_matches(name, os.listdir(folder) if os.path.isdir(folder) else [], n=1)
    hint = f'; did you mean {near[0]}?' if near else (
        '; name a file that is there' if os.path.isdir(folder) else f'; folder {folder} does not exist either')
    raise FileNotFoundError(f'{path}: no such weight file{hint}')


def read_tensors(path: str, keys: list[str]) -> 'OrderedDict[str, torch.Tensor]':
    """Read tensors of a safetensors file whose header was checked.

    Raises:
        WeightFileError: The safetensors library refuses the file.
    """
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, framework='pt') as file:
            return OrderedDict((key, file.get_tensor(key)) for key in keys)
    except (SafetensorError, OSError, AttributeError) as error:
        raise WeightFileError(path, f'damaged safetensors file: {error}', 'download or copy the file again') from None
