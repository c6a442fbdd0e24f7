# SPDX-License-Identifier: Apache-2.0
"""Reading files of data: regular files alone, of bounded size, as text, JSON or arrays; what is wrong is one line."""

import hashlib
import io
import math
import os
import zipfile
from collections.abc import Collection
from typing import Any, BinaryIO

import numpy as np

from ..names import printable
from .guards import check_zip, open_regular, parse_json

__all__ = [
    'MAX_LIST', 'MAX_TEXT', 'as_path', 'check_array_header', 'open_regular', 'read_arrays', 'read_bytes', 'read_json',
    'read_text', 'sha256_of'
]

#: Longest list or index that is read as a whole, and longest other text: plans, results, suites (bytes). A few bytes of
#: JSON can ask for twenty times their memory.
MAX_LIST, MAX_TEXT = 1 << 30, 8 << 20


def as_path(path: Any, what: str = 'path') -> str:
    """The path of a file as text, ``~`` expanded.

    Raises:
        ValueError: If it is none.
    """
    if not isinstance(path, (str, os.PathLike)) or not isinstance(os.fspath(path), str):
        raise ValueError(f'{what}={path!r:.80}: give the path of a file, a text or a pathlib.Path')
    return os.path.expanduser(os.fspath(path))


def read_bytes(path: str | os.PathLike[str], limit: int | None = None) -> bytes:
    """The content of a regular file; see :func:`open_regular`."""
    with open_regular(path, limit) as file:
        return file.read()


def sha256_of(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a regular file, in hexadecimal."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return digest.hexdigest()


def read_text(path: str | os.PathLike[str], limit: int = MAX_TEXT) -> str:
    """The content of a regular text file in UTF-8, a byte order mark left out.

    Raises:
        ValueError: As :func:`open_regular`, or if it is no UTF-8 text.
    """
    try:
        # Windows editors write a mark in front of the text.
        text = read_bytes(path, limit).decode('utf-8-sig')
    except UnicodeDecodeError as error:
        raise ValueError(f'{printable(path)} is not UTF-8 text: {error.reason} at byte {error.start}; mend it, or '
                         'make it anew') from None
    # Binary files can be valid UTF-8.
    if '\0' in text:
        raise ValueError(f'{printable(path)} is no text file: it holds zero bytes')
    return text


def read_json(path: str | os.PathLike[str], limit: int = MAX_TEXT) -> Any:
    """The value in a JSON file; twin keys, NaN and endless nesting are refused.

    Raises:
        FileNotFoundError: No such file.
        ValueError: As :func:`read_text`, or if it is no JSON.
    """
    text = read_text(path, limit)
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f'{printable(path)} is not valid JSON ({error}): mend it, or make it anew') from None


def read_arrays(path: str | os.PathLike[str] | bytes,
                only: Collection[str] | None = None) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of an ``.npz`` file; none that would need pickle, none larger than its bytes.

    Args:
        path (str | PathLike | bytes): The file, or its content.
        only (Collection[str] | None): Names of the arrays to read; None for all.

    Raises:
        FileNotFoundError: No such file.
        ValueError: If it is no ``.npz`` file, damaged, hostile, or holds objects.
    """
    if isinstance(path, bytes):
        # Members of archives inside archives arrive as bytes.
        return _arrays('the file', io.BytesIO(path), len(path), only)
    with open_regular(path) as file:
        return _arrays(os.fspath(path), file, os.fstat(file.fileno()).st_size, only)


def _arrays(path: str, file: BinaryIO, size: int, only: Collection[str] | None) -> dict[str, np.ndarray[Any, Any]]:
    arrays: dict[str, np.ndarray[Any, Any]] = {}
    check_zip(path, size, file, None if only is None else [f'{name}.npy' for name in only])
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix('.npy')
            if only is not None and name not in only:
                continue
            try:
                with archive.open(member) as opened:
                    # First the header alone: an array that claims more than its bytes is never begun.
                    check_array_header(opened, member.file_size)
                with archive.open(member) as opened:
                    arrays[name] = np.lib.format.read_array(opened, allow_pickle=False)
            except Exception as error:  # zipfile, zlib and numpy raise their own types
                cause = f'refused or damaged array {name!r:.80}: {error}'
                raise ValueError(f'{printable(path)}: {cause}; nothing was run') from None
    return arrays


def check_array_header(file: Any, size: int) -> None:
    """Compare the header of a ``.npy`` array with the ``size`` bytes of header and array.

    Raises:
        ValueError: Objects, an unknown version, or a shape that does not fit.
    """
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f'.npy version {version}, which no plain array uses')
    if dtype.hasobject:
        raise ValueError('an object array, which only pickle could read')
    if math.prod(shape) * dtype.itemsize > size:
        raise ValueError(f'shape {shape} does not fit its {size} bytes')
