# SPDX-License-Identifier: Apache-2.0
"""Read TFRecord files of ``tf.train.Example`` without TensorFlow: bytes, floats and whole numbers by name.

The checksums of the records' lengths are looked at, those of their data are not: damaged pictures do not decode.
"""

import os
import re
import struct
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple, Union, overload

import numpy as np

from ..weights.reading import open_regular

Example = Dict[str, List[Any]]
_SHARD = re.compile(r'(?P<name>.+)-(?P<split>\w+)\.tfrecord-(?P<number>\d{5})-of-(?P<total>\d{5})')
# Of CRC-32C, whose polynomial zlib's crc32 does not have.
_CRC = [0] * 256
for _i in range(256):
    _value = _i
    for _ in range(8):
        _value = _value >> 1 ^ (0x82F63B78 if _value & 1 else 0)
    _CRC[_i] = _value


def masked_crc(data: bytes) -> int:
    """The checksum of the format: CRC-32C, turned by 15 bits and moved."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 255]
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def offsets(path: str) -> List[Tuple[int, int]]:
    """Start and length of every record of a file; only the headers are read.

    Raises:
        ValueError: If the file is damaged or cut off.
    """
    found = []
    with open_regular(path) as file:
        size, position = os.fstat(file.fileno()).st_size, 0
        while position < size:
            header = file.read(12)
            length = int.from_bytes(header[:8], 'little')
            if len(header) < 12 or masked_crc(header[:8]) != int.from_bytes(header[8:], 'little'):
                raise ValueError(f'{path}: no TFRecord at byte {position}: it is another kind of file, or damaged')
            # a record: length (8 bytes), its checksum (4), the data, their checksum (4)
            if position + 16 + length > size:
                raise ValueError(f'{path} is cut off in the record at byte {position}: fetch it again')
            found.append((position + 12, length))
            position += 16 + length
            file.seek(position)
    return found


def _fields(data: memoryview) -> Iterator[Tuple[int, Any]]:
    """Number and content of the fields of a protocol buffer message: bytes, or a number for a varint."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        if key & 7 == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
        elif key & 7 == 2:
            length, position = _varint(data, position)
            if position + length > len(data):
                raise ValueError('a field reaches beyond its message')
            yield key >> 3, data[position:position + length]
            position += length
        elif key & 7 in (1, 5):
            width = 8 if key & 7 == 1 else 4
            yield key >> 3, data[position:position + width]
            position += width
        else:
            raise ValueError(f'unknown wire type {key & 7}')


def _varint(data: memoryview, position: int) -> Tuple[int, int]:
    value = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError('a number is cut off')
        byte = data[position]
        value |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return value, position


def _values(kind: int, data: memoryview) -> List[Any]:
    """Content of a BytesList (1), FloatList (2) or Int64List (3)."""
    found: List[Any] = []
    for _, value in _fields(data):
        if kind == 1:
            found.append(bytes(value))
        elif kind == 2:
            found += np.frombuffer(value, '<f4').tolist()
        elif isinstance(value, int):
            found.append(value)
        else:
            position = 0
            while position < len(value):
                number, position = _varint(value, position)
                found.append(number)
    return [v - 2**64 if kind == 3 and v >= 2**63 else v for v in found]


def parse_example(data: bytes) -> Example:
    """A serialised ``tf.train.Example`` as ``{name: values}``.

    Raises:
        ValueError: If it is none.
    """
    example: Example = {}
    try:
        for _, features in _fields(memoryview(data)):
            for _, entry in _fields(features):
                parts = dict(_fields(entry))
                feature = list(_fields(parts[2])) if 2 in parts else []
                example[bytes(parts[1]).decode()] = _values(*feature[0]) if feature else []
    except (KeyError, TypeError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f'no tf.train.Example ({error})') from None
    return example


class Records(Sequence[Dict[str, Any]]):
    """The records of one split, in the order of the shards, read when they are asked for.

    Lists of one value are that value; ``a/b`` and ``a/c`` are a list ``a`` of dicts with ``b`` and ``c``.

    Args:
        paths: The shards in their order.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self.where = [(path, start, length) for path in paths for start, length in offsets(path)]

    def __len__(self) -> int:
        return len(self.where)

    @overload
    def __getitem__(self, index: int) -> Dict[str, Any]:
        ...

    @overload
    def __getitem__(self, index: slice) -> List[Dict[str, Any]]:
        ...

    def __getitem__(self, index: Union[int, slice]) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        path, start, length = self.where[index]
        with open_regular(path) as file:
            file.seek(start)
            data = file.read(length)
        try:
            return nested(parse_example(data))
        except ValueError as error:
            raise ValueError(f'{path}, record at byte {start}: {error}') from None


def nested(example: Example) -> Dict[str, Any]:
    """Single values without their list, and groups ``a/b`` as lists of dicts."""
    record: Dict[str, Any] = {}
    groups: Dict[str, Dict[str, List[Any]]] = defaultdict(dict)
    for name, values in example.items():
        group, _, key = name.partition('/')
        if key:
            groups[group][key] = values
        else:
            record[name] = values[0] if len(values) == 1 else values
    for group, columns in groups.items():
        count = min((len(v) for v in columns.values() if v), default=0)
        rows: List[Dict[str, Any]] = [{} for _ in range(count)]
        for key, values in columns.items():
            each = len(values) // count if count else 0
            for i, row in enumerate(rows):
                part = values[i * each:(i + 1) * each]
                row[key] = part[0] if each == 1 else part
        record[group] = rows
    return record


def find_splits(folder: str) -> Dict[str, Records]:
    """The splits of a data set in TensorFlow Datasets' form: ``<name>-<split>.tfrecord-00000-of-00005``.

    Raises:
        FileNotFoundError: If there are none, or a shard is missing.
    """
    shards: Dict[str, Dict[int, str]] = defaultdict(dict)
    totals: Dict[str, int] = {}
    for path in sorted(Path(folder).glob('*.tfrecord-*')):
        found = _SHARD.fullmatch(path.name)
        if found:
            shards[found['split']][int(found['number'])] = str(path)
            totals[found['split']] = int(found['total'])
    if not shards:
        raise FileNotFoundError(f'{folder} holds no <name>-<split>.tfrecord-00000-of-00001')
    for split, files in shards.items():
        missing = [i for i in range(totals[split]) if i not in files]
        if missing:
            raise FileNotFoundError(f'{folder}: shard {missing[0]} of {totals[split]} of {split!r} is missing')
    return {split: Records([files[i] for i in sorted(files)]) for split, files in shards.items()}
