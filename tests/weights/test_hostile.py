# SPDX-License-Identifier: Apache-2.0
"""Files made to do harm: refused in one line, and nothing in them runs.

Every payload would write a marker file; the tests look for it afterwards. A control shows that the payloads do work
when they are opened carelessly.
"""

import builtins
import io
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save

from mmpetl.weights import WeightFileError, load_file
from mmpetl.weights.safe_pickle import restricted_getattr


@pytest.fixture
def marker(tmp_path):
    return tmp_path / 'it-ran'


class Reduce:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def system(marker):
    return Reduce(os.system, f'touch {marker}')


def evaluate(marker):
    return Reduce(builtins.eval, f'open({str(marker)!r}, "w").close()')


class NestedGetattr:
    """getattr(getattr(HistoryBuffer, '__init__'), '__globals__')['...']: walks from an allowed class to everything
    else."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        from mmengine.logging import HistoryBuffer
        return Reduced(getattr, Reduced(getattr, HistoryBuffer, '__init__'), '__globals__').call


class Reduced(Reduce):
    """A call whose arguments are calls."""


def nested_getattr(marker):
    return NestedGetattr(marker)


def object_array(marker):
    return np.array([system(marker)], dtype=object)


def buffer_attribute(marker):
    from mmengine.logging import HistoryBuffer
    return Reduce(getattr, HistoryBuffer, 'statistics')


PAYLOADS = [system, evaluate, nested_getattr, object_array, buffer_attribute]


def refused(path, cause='', marker=None):
    with pytest.raises(WeightFileError) as error:
        load_file(path)
    text = str(error.value)
    assert str(path) in text and '\n' not in text and cause in text, text
    assert marker is None or not marker.exists(), 'the payload ran'
    return text


@pytest.mark.parametrize('payload', [system, evaluate, object_array])
def test_control_the_payloads_work(tmp_path, marker, payload):
    torch.save({'state_dict': {}, 'x': payload(marker)}, tmp_path / 'evil.pth')
    torch.load(tmp_path / 'evil.pth', weights_only=False)
    assert marker.exists()


@pytest.mark.parametrize('zipped', [True, False], ids=['zip', 'legacy'])
@pytest.mark.parametrize('payload', PAYLOADS)
def test_pickle_payloads_in_torch_files(tmp_path, marker, payload, zipped):
    path = tmp_path / 'evil.pth'
    torch.save({'state_dict': {'w': torch.ones(2)}, 'x': payload(marker)}, path, _use_new_zipfile_serialization=zipped)
    assert 'refused' in refused(path, marker=marker)


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('protocol', [0, 2, 4])
@pytest.mark.parametrize('suffix', ['.pth', '.pkl', '.pt'])
def test_bare_pickles(tmp_path, marker, protocol, suffix):
    path = tmp_path / f'evil{suffix}'
    path.write_bytes(pickle.dumps({'state_dict': system(marker)}, protocol))
    refused(path, marker=marker)


def test_payload_hidden_in_a_key_or_in_tensor_state(tmp_path, marker):
    tensor = torch.ones(2)
    tensor.trap = system(marker)  # pickled through _rebuild_from_type_v2
    torch.save({'state_dict': OrderedDict(w=tensor)}, tmp_path / 'evil.pth')
    refused(tmp_path / 'evil.pth', marker=marker)


def test_allow_list_names_the_culprit(tmp_path, marker):
    torch.save({'state_dict': {'w': torch.ones(1)}, 'x': system(marker)}, tmp_path / 'evil.pth')
    text = refused(tmp_path / 'evil.pth', marker=marker)
    assert 'system' in text and 'nothing was run' in text


@pytest.mark.parametrize(
    'name', ['__init__', '__class__', '__globals__', 'statistics', 'register_statistics', 'update', '__dict__'])
def test_getattr_gives_out_four_methods_and_no_more(name):
    from mmengine.logging import HistoryBuffer
    assert restricted_getattr(HistoryBuffer, 'mean') is HistoryBuffer.mean
    with pytest.raises(pickle.UnpicklingError):
        restricted_getattr(HistoryBuffer, name)
    for owner in (HistoryBuffer([1.], [1]), HistoryBuffer.mean, os, dict):
        with pytest.raises(pickle.UnpicklingError):
            restricted_getattr(owner, 'mean')


@pytest.mark.parametrize('compressed', [True, False])
def test_object_arrays_in_npz(tmp_path, marker, compressed):
    path = tmp_path / 'evil.npz'
    (np.savez_compressed if compressed else np.savez)(path, good=np.ones(2), bad=object_array(marker))
    refused(path, 'object array', marker)


# -- TorchScript ------------------------------------------------------------------------------------------------------


def script_archive(path, data, extra=()):
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('m/data.pkl', data)
        archive.writestr('m/constants.pkl', pickle.dumps(()))
        archive.writestr('m/code/__torch__.py', 'import os\n')
        for name, content in extra:
            archive.writestr(name, content)


@pytest.mark.parametrize('payload', [system, evaluate, nested_getattr])
@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_pickle_payloads_in_torchscript_archives(tmp_path, marker, payload, protocol):
    script_archive(tmp_path / 'evil.pt', pickle.dumps({'x': payload(marker)}, protocol))
    refused(tmp_path / 'evil.pt', 'refused: the TorchScript archive asks for', marker)


def storage_pickle(numel, shape, stride, offset=0):
    """Opcodes of a tensor over storage 0 with whatever sizes one likes."""
    def integers(values):
        return b'(' + b''.join(b'\x8a\x08' + struct.pack('<q', value) for value in values) + b't'
    storage = b'(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu'
    storage += b'\x8a\x08' + struct.pack('<q', numel) + b'tQ'
    tensor = b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage + b'\x8a\x08' + struct.pack('<q', offset)
    tensor += integers(shape) + integers(stride) + b'\x89ccollections\nOrderedDict\n)RtR'
    return b'\x80\x02}X\x01\x00\x00\x00w' + tensor + b's.'


@pytest.mark.parametrize('numel, shape, stride, offset', [
    (1 << 50, (1 << 50,), (1,), 0), (2, (1 << 40,), (0,), 0), (2, (3,), (1,), 0),
    (2, (2,), (1,), 1), (2, (2,), (-1,), 0), (2, (-2,), (1,), 0)])
def test_absurd_shapes_in_torchscript_archives(tmp_path, numel, shape, stride, offset):
    path = tmp_path / 'evil.pt'
    script_archive(path, storage_pickle(2, (2,), (1,)), [('m/data/0', bytes(8))])
    assert torch.equal(load_file(path)['state_dict']['w'], torch.zeros(2)), 'the honest version must load'
    script_archive(path, storage_pickle(numel, shape, stride, offset), [('m/data/0', bytes(8))])
    refused(path, 'damaged TorchScript archive')


def test_pickle_memory_bomb_in_a_torchscript_archive(tmp_path):
    """The C unpickler would reserve a table of 4 G entries for this memo index."""
    script_archive(tmp_path / 'evil.pt', b'\x80\x02}r\xff\xff\xff\xff.')
    assert load_file(tmp_path / 'evil.pt')['state_dict'] == {}


# -- archives and headers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize('kind', ['npz', 'torch', 'torchscript'])
def test_zip_bombs(tmp_path, kind):
    """300 MiB of zeros in 300 KiB."""
    path = tmp_path / ('bomb.npz' if kind == 'npz' else 'bomb.pth')
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(descr='<f4', fortran_order=False, shape=(75 << 20,)))
    names = dict(
        npz=['w.npy'], torch=['m/data.pkl', 'm/data/0'], torchscript=['m/data.pkl', 'm/constants.pkl',
                                                                      'm/data/0'])[kind]
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name in names[:-1]:
            archive.writestr(name, b'')
        with archive.open(names[-1], 'w', force_zip64=True) as member:
            member.write(header.getvalue() if kind == 'npz' else b'')
            for _ in range(300):
                member.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    refused(path, 'zip bomb')


def test_overlapping_members(tmp_path):
    """Two entries of the table of contents that share one packed body."""
    path = tmp_path / 'overlap.npz'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('a.npy', bytes(4096))
        archive.writestr('b.npy', bytes(4096))
        second = archive.getinfo('b.npy')
        second.header_offset = archive.getinfo('a.npy').header_offset
    data = bytearray(path.read_bytes())
    start, stop = data.index(b'PK\x03\x04', 1), data.index(b'PK\x01\x02')
    del data[start:stop]  # the second body is gone, its entry points at the first
    end = data.index(b'PK\x05\x06')
    data[end + 16:end + 20] = struct.pack('<I', start)
    path.write_bytes(data)
    refused(path, 'overlap')


@pytest.mark.parametrize('name', ['../evil.npy', '/etc/evil.npy', 'a/../../evil.npy', '..\\evil.npy', 'C:\\evil.npy'])
def test_member_names_that_escape(tmp_path, name):
    path = tmp_path / 'evil.npz'
    with zipfile.ZipFile(path, 'w') as archive:
        archive.writestr('x' * len(name), b'1')
    path.write_bytes(path.read_bytes().replace(b'x' * len(name), name.encode()))
    refused(path, 'leaves the archive')
    assert [entry.name for entry in tmp_path.iterdir()] == ['evil.npz']


@pytest.mark.filterwarnings('ignore:Duplicate name')
def test_twin_members(tmp_path):
    with zipfile.ZipFile(tmp_path / 'twins.npz', 'w') as archive:
        for content in (b'1', b'2'):
            archive.writestr('w.npy', content)
    refused(tmp_path / 'twins.npz', 'same name')


@pytest.mark.parametrize('shape', [(1 << 40,), (1 << 20, 1 << 20), (-1,), (1 << 63, 4)])
def test_absurd_shapes_in_npz(tmp_path, shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(descr='<f4', fortran_order=False, shape=shape))
    with zipfile.ZipFile(tmp_path / 'w.npz', 'w') as archive:
        archive.writestr('w.npy', header.getvalue() + bytes(16))
    refused(tmp_path / 'w.npz', 'array')


def with_header(path, change):
    """A safetensors file whose JSON header went through ``change``."""
    data = save({'w': torch.ones(4), 'v': torch.ones(2)})
    length = int.from_bytes(data[:8], 'little')
    header = json.loads(data[8:8 + length])
    text = change(header)
    text = (text if isinstance(text, str) else json.dumps(header)).encode()
    path.write_bytes(struct.pack('<Q', len(text)) + text + data[8 + length:])


def entry(header, **values):
    header['w'].update(values)


@pytest.mark.parametrize('change, cause',
                         [(lambda h: entry(h, shape=[1 << 40]), 'does not fit its 16 bytes'),
                          (lambda h: entry(h, shape=[1 << 62, 1 << 62]), 'does not fit'),
                          (lambda h: entry(h, shape=[-4]), 'impossible header entry'),
                          (lambda h: entry(h, shape=4), 'impossible header entry'),
                          (lambda h: entry(h, shape=[True, 4]), 'impossible header entry'),
                          (lambda h: entry(h, dtype='OBJECT'), 'impossible header entry'),
                          (lambda h: entry(h, shape=[1 << 30], data_offsets=[0, 4 << 30]), 'truncated'),
                          (lambda h: entry(h, data_offsets=[4, 20]), 'overlap'),
                          (lambda h: entry(h, data_offsets=[16, 32]), 'truncated'),
                          (lambda h: entry(h, data_offsets=h['v']['data_offsets']), 'does not fit'),
                          (lambda h: h.update({'../../w': h.pop('w')}), 'impossible header entry'),
                          (lambda h: h.update({'/w': h.pop('w')}), 'impossible header entry'),
                          (lambda h: '[1]', 'damaged or truncated'),
                          (lambda h: '{"a": 1,', 'broken safetensors header'),
                          (lambda h: '{"__metadata__": {"a": 1}}', 'not a table of strings'),
                          (lambda h: '{"a":' * 5000, 'broken safetensors header'),
                          (lambda h: '{"w": {}, "w": {}}', 'a key occurs twice')])
def test_safetensors_headers(tmp_path, change, cause):
    with_header(tmp_path / 'w.safetensors', change)
    refused(tmp_path / 'w.safetensors', cause)


def test_overlapping_tensors(tmp_path):
    with_header(tmp_path / 'w.safetensors', lambda h: h.update(u={
        'dtype': 'F32',
        'shape': [2],
        'data_offsets': [8, 16]
    }))
    refused(tmp_path / 'w.safetensors', 'overlap')


@pytest.mark.parametrize('length', [1 << 62, 1 << 33, 5000])
def test_safetensors_header_longer_than_the_file(tmp_path, length):
    (tmp_path / 'w.safetensors').write_bytes(struct.pack('<Q', length) + b'{}' + bytes(100))
    refused(tmp_path / 'w.safetensors', 'truncated')


def test_expanded_tensor_of_absurd_size(tmp_path):
    """Four bytes that claim to be a terabyte: harmless until the first copy."""
    torch.save({'w': torch.ones(1).expand(1 << 19, 1 << 19)}, tmp_path / 'w.pth')
    refused(tmp_path / 'w.pth', 'announced')


@pytest.mark.parametrize('seed', range(40))
def test_random_damage_never_escapes_as_another_error(tmp_path, seed):
    """Bytes flipped anywhere: the file loads, or one WeightFileError says why not."""
    rng = np.random.default_rng(seed)
    path = tmp_path / ['w.pth', 'w.safetensors', 'w.npz', 's.pt'][seed % 4]
    state = {'a': torch.arange(8.), 'b': torch.ones(2, 2)}
    if seed % 4 == 0:
        torch.save({'state_dict': state, 'epoch': 1}, path, _use_new_zipfile_serialization=bool(seed % 8))
    elif seed % 4 == 1:
        path.write_bytes(save(state))
    elif seed % 4 == 2:
        np.savez(path, **{key: value.numpy() for key, value in state.items()})
    else:
        torch.jit.save(torch.jit.script(torch.nn.Linear(3, 3)), path)
    data = bytearray(path.read_bytes())
    for position in rng.integers(0, len(data), 1 + seed % 20):
        data[position] = rng.integers(0, 256)
    path.write_bytes(data)
    try:
        load_file(path)
    except WeightFileError as error:
        assert '\n' not in str(error)
