# SPDX-License-Identifier: Apache-2.0
"""TFRecord files and VTAB-1k made of them, without TensorFlow: files written here byte by byte after the format's description."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from mmpetl.datasets import VTAB1k
from mmpetl.datasets.tfrecord import Records, find_splits, masked_crc, offsets, parse_example
from mmpetl.datasets.vtab_records import main, source_folder, write_task


def varint(value):
    value &= 2**64 - 1
    out = b''
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number, data):
    return varint(number << 3 | 2) + varint(len(data)) + data


def feature(values):
    if values and isinstance(values[0], bytes):
        return field(1, b''.join(field(1, v) for v in values))
    if values and isinstance(values[0], float):
        return field(2, field(1, struct.pack(f'<{len(values)}f', *values)))
    return field(3, field(1, b''.join(map(varint, values))))


def example(**features):
    entries = (field(1, name.replace('__', '/').encode()) + field(2, feature(values)) for name, values in features.items())
    return field(1, b''.join(field(1, entry) for entry in entries))


def record(data):
    header = struct.pack('<Q', len(data))
    return header + struct.pack('<I', masked_crc(header)) + data + b'\0' * 4  # the checksum of the data is not looked at


def png(value, size=(4, 5), channels=3):
    file = io.BytesIO()
    array = np.full((*size, 3), value, np.uint8) if channels == 3 else np.full(size, value, np.uint8)
    Image.fromarray(array).save(file, 'PNG')
    return file.getvalue()


def write(folder, name, splits, shards=2):
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        for s in range(shards):
            part = rows[len(rows) * s // shards:len(rows) * (s + 1) // shards]
            (folder / f'{name}-{split}.tfrecord-{s:05d}-of-{shards:05d}').write_bytes(b''.join(map(record, part)))


def test_checksum_and_messages():
    # CRC-32C of '123456789' is 0xE3069283
    crc = 0xE3069283
    assert masked_crc(b'123456789') == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
    found = parse_example(example(image=[b'abc'], label=[300], n=[-1, 2], x=[0.5, -2.0], none=[]))
    assert found == dict(image=[b'abc'], label=[300], n=[-1, 2], x=[0.5, -2.0], none=[])
    for data in (b'\x0a\xff', b'text', b'\xff' * 20):
        with pytest.raises(ValueError):
            parse_example(data)


def test_cifar(tmp_path, capsys):
    """50,000 records of which 1,000 are taken: only those are decoded."""
    rows = [example(image=[png(i % 250)], label=[i % 100]) for i in range(800)]
    later = [example(image=[b'never read'], label=[0])] * 44200
    rows += later + [example(image=[png(i % 250)], label=[i % 100]) for i in range(200)]
    write(tmp_path / 'tfds/cifar100/3.0.2', 'cifar100', dict(train=rows, test=[example(image=[png(7)], label=[c]) for c in range(100)]))
    counts = write_task('cifar', str(tmp_path / 'tfds'), str(tmp_path / 'vtab'))
    assert counts == dict(train800=800, val200=200, train800val200=1000, test=100)
    data = VTAB1k('cifar', 'train800val200', data_root=str(tmp_path / 'vtab'), pipeline=[dict(type='mmpetl.LoadImage')])
    assert len(data) == 1000 and data[433]['gt_label'] == 33 and int(data[433]['img'][0, 0, 0]) == 433 % 250
    assert data[801]['gt_label'] == 1 and data[801]['img_path'].endswith('val200/045001.png')
    assert main(None, [str(tmp_path / 'tfds'), '--out', str(tmp_path / 'vtab'), '--task', 'cifar', 'dtd']) == 1
    said = capsys.readouterr().out
    assert 'cifar: train800 800' in said and 'dtd/3.*.* does not exist' in said and '1 of 2 tasks' in said


def test_objects_and_masks(tmp_path):
    """Records with a list of objects (KITTI), and masks of 0 and 1 (dSprites)."""
    near, far, none = ([0, 7], [1., 1., 5., 0., 0., 1.]), ([1], [0., 0., 30.]), ([], [])
    rows = [example(image=[png(9)], objects__type=t, objects__location=x) for t, x in (near, far, none) * 300]
    write(tmp_path / 'kitti/3.2.0', 'kitti', dict(train=rows, validation=rows[:200], test=rows[:6]))
    write_task('kitti', str(tmp_path), str(tmp_path / 'vtab'))
    lines = (tmp_path / 'vtab/kitti/test.txt').read_text().splitlines()
    assert [line.split()[1] for line in lines] == ['0', '2', '3'] * 2
    assert Records([str(tmp_path / 'kitti/3.2.0/kitti-test.tfrecord-00000-of-00002')])[0]['objects'] == [
        dict(type=0, location=[1., 1., 5.]), dict(type=7, location=[0., 0., 1.])]
    from mmpetl.datasets.tables import get_task
    from mmpetl.datasets.vtab_records import _picture
    mask = _picture(get_task('vtab', 'dsprites_loc'), dict(image=png(1, channels=1)))
    assert mask.shape == (4, 5, 3) and (mask == 255).all()


def test_damaged_and_missing(tmp_path):
    write(tmp_path / 'dtd/3.0.1', 'dtd', dict(train=[example(image=[png(1)], label=[0])] * 4))
    write(tmp_path / 'dtd/3.1.0', 'dtd', dict(train=[example(image=[png(1)], label=[0])] * 4))
    from mmpetl.datasets.tables import get_task
    assert source_folder(get_task('vtab', 'dtd'), str(tmp_path)).endswith('3.1.0')
    with pytest.raises(ValueError, match='needs|names a split'):
        write_task('dtd', str(tmp_path), str(tmp_path / 'vtab'))
    first, second = sorted((tmp_path / 'dtd/3.1.0').iterdir())
    data = first.read_bytes()
    for wrong, words in ((data[:-5], 'is cut off'), (b'no record' + data, 'no TFRecord at byte 0'), (data[:20], 'is cut off')):
        first.write_bytes(wrong)
        with pytest.raises(ValueError, match=f'{first}.*{words}'):
            offsets(str(first))
    second.unlink()
    first.write_bytes(data)
    with pytest.raises(FileNotFoundError, match="shard 1 of 2 of 'train' is missing"):
        find_splits(str(first.parent))
    with pytest.raises(FileNotFoundError, match='holds no'):
        find_splits(str(tmp_path))
