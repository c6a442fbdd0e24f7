# SPDX-License-Identifier: Apache-2.0
"""What hostile files are made of; loaded by path, tests are no package."""

import functools
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import torch
from safetensors.torch import save

from mmpetl.datasets.tfrecord import masked_crc
from mmpetl.weights import adapter_file


def command(marker: Path) -> str:
    """A shell command that leaves a trace."""
    return f'touch {marker}'


class Call:
    """Pickles as a call."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


def write_header(source: Path, target: Path, change: Callable[[Dict[str, Any]], Any]) -> Path:
    """Copy an adapter file with another header, written past every check of :func:`adapter_file.save`."""
    tensors, header = adapter_file.load(source)
    change(header)
    target.write_bytes(save(tensors, {adapter_file.METADATA_KEY: json.dumps(header)}))
    return target


def _torch(value: Any, zipped: bool = True) -> bytes:
    data = io.BytesIO()
    torch.save(value, data, _use_new_zipfile_serialization=zipped)
    return data.getvalue()


def _numpy(value: Any, **arrays: Any) -> bytes:
    data = io.BytesIO()
    np.savez(data, **arrays) if arrays else np.save(data, value, allow_pickle=True)
    return data.getvalue()


def _npy(shape: Any, body: bytes = bytes(64)) -> bytes:
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, dict(descr='|u1', fortran_order=False, shape=shape))
    return data.getvalue() + body


def _zip(**members: bytes) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return data.getvalue()


def _zip_named(name: str, kind: int = 0) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w') as archive:
        info = zipfile.ZipInfo('x' * len(name))
        info.external_attr = kind << 16
        archive.writestr(info, b'/etc/passwd')
    return data.getvalue().replace(b'x' * len(name), name.encode())


def _tar(name: str, kind: bytes, link: str = '', content: bytes = b'') -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode='w:gz') as tar:
        item = tarfile.TarInfo(name)
        item.type, item.linkname, item.size = kind, link, len(content)
        tar.addfile(item, io.BytesIO(content))
    return data.getvalue()


def _safetensors(header: Any, body: bytes = bytes(16)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + body


def _adapter(**changes: Any) -> bytes:
    header = dict(format=1, mmpetl_version='0', name='x', methods=[dict(type='LoRA', rank=2)], tune=[], trunk='eval',
                  backbone='x', base=dict(id=None), counts=dict(stored=4))
    return save({'w': torch.ones(4)}, {adapter_file.METADATA_KEY: json.dumps({**header, **changes})})


def _png(width: int, height: int, depth: int, colour: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))
    rows = zlib.compress(bytes(8 << 20), 9)
    return (b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0))
            + chunk(b'IDAT', rows) + chunk(b'IEND', b''))


def _tiff(width: int, height: int) -> bytes:
    """Five bands of 32-bit floats, which Pillow does not know, and no data behind them."""
    tags = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 32), (259, 3, 1, 8), (262, 3, 1, 1), (273, 4, 1, 8),
            (277, 3, 1, 5), (278, 4, 1, height), (279, 4, 1, 64), (284, 3, 1, 1), (339, 3, 1, 3)]
    body = b''.join(struct.pack('<HHII', *tag) for tag in tags)
    return b'II*\0' + struct.pack('<I', 72) + bytes(64) + struct.pack('<H', len(tags)) + body + bytes(4)


def _record(data: bytes) -> bytes:
    length = struct.pack('<Q', len(data))
    return length + struct.pack('<I', masked_crc(length)) + data + struct.pack('<I', masked_crc(data))


def _onnx(size: int) -> bytes:
    import onnx
    tensor = onnx.TensorProto(name='w', dims=[size, size], data_type=onnx.TensorProto.FLOAT, raw_data=bytes(16))
    outside = onnx.TensorProto(name='v', data_type=onnx.TensorProto.FLOAT, data_location=onnx.TensorProto.EXTERNAL)
    outside.external_data.add(key='location', value='/etc/passwd')
    return onnx.ModelProto(graph=onnx.GraphProto(initializer=[tensor, *([outside] if size == 1 else [])])
                           ).SerializeToString()


@functools.lru_cache
def _zero_bomb() -> bytes:
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, dict(descr='|u1', fortran_order=False, shape=(400 << 20, )))
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w', zipfile.ZIP_DEFLATED) as archive, archive.open('w.npy', 'w') as member:
        member.write(head.getvalue())
        for _ in range(400):
            member.write(bytes(1 << 20))
    return data.getvalue()


_ESCAPES = '\x1b]0;owned\x07\x1b[2J\u202e'
_PATHS = ('../../../escaped', '/escaped', '..\\escaped', 'C:\\escaped', '/dev/zero', '~/escaped')

#: Kind -> content of a file, made with the path of a marker that must never appear.
KINDS: Dict[str, Callable[[Path], bytes]] = {
    'torch zip with a command': lambda m: _torch({'state_dict': {'w': torch.ones(1)}, 'x': Call(os.system, command(m))}),
    'legacy torch with a command': lambda m: _torch({'x': Call(os.system, command(m))}, False),
    'pickle 0': lambda m: pickle.dumps(Call(os.system, command(m)), 0),
    'pickle 4': lambda m: pickle.dumps({'state_dict': Call(eval, f'open({str(m)!r}, "w")')}, 4),
    'npy of objects': lambda m: _numpy(np.array([Call(os.system, command(m))], dtype=object)),
    'npz of objects': lambda m: _numpy(None, weight=np.array([Call(os.system, command(m))], dtype=object)),
    'npy of absurd shape': lambda m: _npy((1 << 20, 1 << 12)),
    'npz of absurd shape': lambda m: _zip(**{'scores.npy': _npy((1 << 20, 1 << 12)), 'imgs.npy': _npy((1 << 30, ))}),
    'TorchScript with a command': lambda m: _zip(**{'m/data.pkl': pickle.dumps(Call(os.system, command(m)), 2),
                                                    'm/constants.pkl': b'', 'm/code/__torch__.py': b'import os'}),
    'zip bomb': lambda m: _zero_bomb(),
    'zip bomb of one picture': lambda m: _zip(**{'a.png': bytes(300 << 20)}),
    'gzip bomb': lambda m: gzip.compress(bytes(300 << 20)),
    'expanded tensor': lambda m: _torch({'w': torch.ones(1).expand(1 << 19, 1 << 19)}),
    'safetensors of absurd shape': lambda m: _safetensors({'w': dict(dtype='F32', shape=[1 << 40],
                                                                     data_offsets=[0, 16])}),
    'safetensors with a deep header': lambda m: _safetensors(b'{"a":' * 20000 + b'1' + b'}' * 20000),
    'safetensors with a false length': lambda m: struct.pack('<Q', 1 << 33) + b'{}' + bytes(90),
    'adapter of a dotted type': lambda m: _adapter(methods=[dict(type='os.system', command=command(m))]),
    'adapter of an absurd rank': lambda m: _adapter(methods=[dict(type='LoRA', rank=1 << 19)]),
    'adapter of absurd layers': lambda m: _adapter(methods=[dict(type='LoRA', rank=2, layers='0-99999999999')]),
    'adapter with escapes': lambda m: _adapter(name=_ESCAPES, backbone=_ESCAPES, classes=[_ESCAPES]),
    'checkpoint with a config': lambda m: _torch({
        'state_dict': {'w': torch.ones(1)}, 'meta': dict(config=f'__import__("os").system({command(m)!r})', epoch=1),
        'message_hub': dict(runtime_info=dict(cfg=f'__import__("os").system({command(m)!r})'))}),
    'names with escapes': lambda m: _torch({'state_dict': {_ESCAPES: torch.ones(1)}, _ESCAPES: _ESCAPES}),
    'zip member that climbs': lambda m: _zip_named('../../../escaped.npy'),
    'zip member of an absolute name': lambda m: _zip_named('/escaped.npy'),
    'zip link': lambda m: _zip_named('escaped.npy', 0o120777),
    'tar member that climbs': lambda m: _tar('../../../escaped', tarfile.REGTYPE),
    'tar link': lambda m: _tar('escaped', tarfile.SYMTYPE, '/etc/passwd'),
    'tar device': lambda m: _tar('escaped', tarfile.CHRTYPE),
    'tar of deep JSON': lambda m: _tar('a.ndjson.gz', tarfile.REGTYPE, content=gzip.compress(b'[' * 200000)),
    'deep JSON': lambda m: b'[' * 200000,
    'deep JSON object': lambda m: b'{"tasks":' * 50000 + b'1' + b'}' * 50000,
    'twin keys': lambda m: b'{"tasks": {}, "tasks": {"a": {"num_classes": 2}}}',
    'NaN and a huge number': lambda m: b'{"status": NaN, "seconds": 1' + b'0' * 9000 + b', "a": 1e999}',
    'a list of numbers': lambda m: b'[1, 2, 3]',
    'another object': lambda m: json.dumps(dict(host=3, tasks=[1], status={}, name=[None], recipe=[], scores=7)).encode(),
    'types in JSON': lambda m: json.dumps({k: dict(type='os.system', command=command(m)) for k in (
        'tasks', 'status', 'host', 'suite', 'images', 'model')}).encode(),
    'paths in a list': lambda m: ''.join(f'{path} 0\n' for path in _PATHS).encode(),
    'paths in JSON': lambda m: json.dumps([{path: 0} for path in _PATHS]).encode(),
    'paths in an object': lambda m: json.dumps(dict.fromkeys(_PATHS, 'a')).encode(),
    'tasks that climb': lambda m: json.dumps(dict(tasks={p: dict(num_classes=2) for p in _PATHS})).encode(),
    'terminal escapes': lambda m: f'{_ESCAPES} {_ESCAPES}\n'.encode(),
    'YAML tags': lambda m: f'!!python/object/apply:os.system ["{command(m)}"]\n'.encode(),
    'Python': lambda m: f'import os\nos.system({command(m)!r})\nclass_map = {{}}\ntemplate_map = {{}}\n'.encode(),
    'deep Python': lambda m: b'class_map = ' + b'(' * 90000,
    'HTML': lambda m: b'<html><script>alert(1)</script></html>',
    'formulas': lambda m: b'label,youtube_id,time_start,time_end\n=cmd,=1+1,=2,x\n',
    'zeros': lambda m: bytes(4096),
    'no UTF-8': lambda m: b'a 0\n\xff\xfe\xfd\x00\xd8 1\n\xed\xa0\x80 2\n',
    'one endless line': lambda m: b'a' * (4 << 20),
    'Git LFS pointer': lambda m: b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n',
    'PNG bomb': lambda m: _png(60000, 60000, 8, 2),
    'PNG bomb of 16 bits': lambda m: _png(30000, 30000, 16, 2),
    'PNG of 16 bits, cut off': lambda m: _png(100, 100, 16, 2)[:60],
    'TIFF bomb': lambda m: _tiff(60000, 60000),
    'DICOM': lambda m: bytes(128) + b'DICM' + b'\xff' * 64,
    'TFRecord of an absurd field': lambda m: _record(b'\x0a\xff\xff\xff\xff\x0f'),
    'TFRecord of zeros': lambda m: _record(bytes(1000)),
    'ONNX of absurd shape': lambda m: _onnx(1 << 20),
    'ONNX with a file outside': lambda m: _onnx(1),
    'nothing': lambda m: b'',
}
#: Kinds that are no files.
STRANGE: Dict[str, Callable[[Path], Any]] = {
    'link to a device': lambda path: path.symlink_to('/dev/zero'),
    'pipe': os.mkfifo,
    'folder': Path.mkdir,
    'link to itself': lambda path: path.symlink_to(path.name),
}
