# SPDX-License-Identifier: Apache-2.0
"""Checks made on a file before any tensor of it is read.

Archives say how large their members become and headers say which shapes follow. Both are claims of whoever wrote the
file, so they are compared with the bytes that are really there before memory is taken for them.
"""

import json
import math
import os
import stat
import zipfile
from contextlib import nullcontext
from typing import Any, BinaryIO, Collection

from ..names import is_escape, printable
from .errors import WeightFileError

#: A compressed archive may grow at most by this factor; weights compress by 1.1 to 2, all-zero arrays by about 1000.
MAX_RATIO = 100
#: Below this size growth is harmless whatever its factor (bytes).
SMALL = 64 << 20
#: Longest safetensors header accepted (bytes): some 80,000 tensors. Parsed, it can take twenty times its size.
MAX_HEADER = 8 << 20

#: Bytes per element of each safetensors type that torch can hold.
ITEM_SIZE = {
    'F64': 8,
    'F32': 4,
    'F16': 2,
    'BF16': 2,
    'I64': 8,
    'I32': 4,
    'I16': 2,
    'I8': 1,
    'U8': 1,
    'U16': 2,
    'U32': 4,
    'U64': 8,
    'BOOL': 1,
    'F8_E4M3': 1,
    'F8_E5M2': 1,
    'C64': 8,
}

def open_regular(path: str | os.PathLike[str], limit: int | None = None) -> BinaryIO:
    """Open a file for reading, unless it is a device, a pipe or another thing that never ends.

    Args:
        path (str | PathLike): The file; links are followed.
        limit (int | None): Largest size in bytes.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a regular file, or one beyond the limit.
    """
    # without O_NONBLOCK a pipe that nobody writes to would be waited for
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        # Of the open file: what a path names may change between two questions.
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f'{printable(path)} is no regular file: give the file itself')
        if limit is not None and found.st_size > limit:
            raise ValueError(f'{printable(path)} has {found.st_size:,} bytes, more than the {limit:,} that are read')
        return os.fdopen(handle, 'rb')
    except BaseException:
        os.close(handle)
        raise


def check_zip(path: str, size: int, file: BinaryIO | None = None,
              read: Collection[str] | None = None) -> list[str]:
    """Check the table of contents of a zip archive.

    Args:
        path (str): The archive.
        size (int): Its size in bytes.
        file (BinaryIO | None): The archive where it is open already; ``path`` then serves messages.
        read (Collection[str] | None): Members that will be unpacked as a whole, whose size counts; None for all.

    Returns:
        list[str]: Names of its members.

    Raises:
        WeightFileError: Truncated archive, member names that escape or occur twice, encrypted members, members that
            overlap, or contents that would grow beyond reason (a zip bomb).
    """
    try:
        with nullcontext(file) if file else open_regular(path) as opened, zipfile.ZipFile(opened) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError) as error:
        raise WeightFileError(path, f'damaged or truncated archive: {error}',
                              'download or copy the file again') from None
    names = [member.filename for member in members]
    for name in names:
        if is_escape(name):
            raise WeightFileError(path, f'archive member {name[:80]!r} leaves the archive', 'do not use this file')
    if len(set(names)) != len(names):
        raise WeightFileError(path, 'two archive members have the same name', 'do not use this file')
    if any(member.flag_bits & 1 for member in members):
        raise WeightFileError(path, 'encrypted archive', 'decrypt it first')
    # Members that overlap read the same bytes again and again: a small file that unpacks without end.
    packed = sum(member.compress_size for member in members)
    unpacked = sum(member.file_size for member in members if read is None or member.filename in read)
    if packed > size:
        raise WeightFileError(path, f'archive members overlap: {packed} packed bytes in a file of {size}',
                              'do not use this file')
    if unpacked > max(SMALL, MAX_RATIO * size):
        raise WeightFileError(path, f'zip bomb: {size} bytes would become {unpacked}', 'do not use this file')
    return names


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError('a key occurs twice')
    return result


def parse_json(text: str | bytes, finite: bool = True) -> Any:
    """Parse JSON and refuse what the standard permits but no honest writer produces (twin keys, NaN, endless nesting).

    Args:
        text (str | bytes): The text.
        finite (bool): Refuse NaN and infinity, which logs of training may hold.

    Raises:
        ValueError: One-line cause.
    """
    def constant(name: str) -> float:
        if finite:
            raise ValueError(f'{name} is not allowed')
        return float(name)

    try:
        return json.loads(text, object_pairs_hook=_no_twins, parse_constant=constant)
    except RecursionError:
        raise ValueError('nested too deeply') from None
    except UnicodeDecodeError as error:
        raise ValueError(f'not UTF-8: {error.reason}') from None


def read_safetensors_header(path: str, size: int) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str]]:
    """Read and check the header of a safetensors file without reading a tensor.

    Args:
        path (str): The file.
        size (int): Its size in bytes.

    Returns:
        tuple: ``{key: (dtype, shape)}`` and the metadata ``{str: str}``.

    Raises:
        WeightFileError: Truncated file, broken header, or shapes and offsets that do not match the bytes present.
    """
    with open_regular(path) as file:
        # The format begins with the length of its header.
        length = int.from_bytes(file.read(8), 'little')
        if length > size - 8:
            raise WeightFileError(path, f'truncated: header of {length} bytes announced in a file of {size}',
                                  'download or copy the file again')
        if length > MAX_HEADER:
            raise WeightFileError(path, f'absurd header of {length} bytes, at most {MAX_HEADER} are read',
                                  'do not use this file')
        raw = file.read(length)
    try:
        header = parse_json(raw)
        if not isinstance(header, dict):
            raise ValueError('not a JSON object')
        metadata = header.pop('__metadata__', {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError('__metadata__ is not a table of strings')
    except ValueError as error:
        raise WeightFileError(path, f'broken safetensors header: {error}', 'write the file again') from None
    return _check_entries(path, header, size - 8 - length), metadata


def _check_entries(path: str, header: dict[str, Any], room: int) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Compare every announced tensor with the ``room`` bytes that follow the header."""
    entries: dict[str, tuple[str, tuple[int, ...]]] = {}
    spans: list[tuple[int, int]] = []
    for key, entry in header.items():
        try:
            dtype, shape, (start, stop) = entry['dtype'], entry['shape'], entry['data_offsets']
            sane = all(type(value) is int and value >= 0 for value in (*shape, start, stop)) and dtype in ITEM_SIZE
        except (TypeError, KeyError, ValueError):
            sane = False
        if not sane or is_escape(key):
            raise WeightFileError(path, f'tensor {key[:80]!r} has an impossible header entry', 'do not use this file')
        # Before torch is asked for memory by a shape that the bytes do not fill.
        if math.prod(shape) * ITEM_SIZE[dtype] != stop - start:
            raise WeightFileError(path, f'tensor {key[:80]!r}: shape {shape} does not fit its {stop - start} bytes',
                                  'do not use this file')
        if stop > room:
            raise WeightFileError(path,
                                  f'truncated: tensor {key[:80]!r} ends {stop - room} bytes after the end of the file',
                                  'download or copy the file again')
        spans.append((start, stop))
        entries[key] = (dtype, tuple(shape))
    # By their start: neighbours then tell whether any two overlap.
    spans.sort()
    if any(left[1] > right[0] for left, right in zip(spans, spans[1:])):
        raise WeightFileError(path, 'tensors overlap', 'do not use this file')
    return entries
