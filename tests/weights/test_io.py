# SPDX-License-Identifier: Apache-2.0
"""Opening every kind of file, and writing so that a kill leaves the old file or the new one."""

import argparse
import itertools
import json
import os
import signal
import time
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmpetl.weights import WeightFileError, atomic_write, load_file, write_json
from mmpetl.weights.io import file_kind


@pytest.fixture
def state():
    return OrderedDict({
        'a.weight': torch.arange(12.).reshape(3, 4),
        'a.bias': torch.ones(3, dtype=torch.float16),
        'n': torch.tensor(5)
    })


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('wrap', ['state_dict', 'model', 'module', None])
def test_torch_files(tmp_path, state, zipped, wrap):
    path = tmp_path / 'w.pth'
    whole = {wrap: state, 'epoch': 3, 'args': argparse.Namespace(lr=0.1)} if wrap else state
    torch.save(whole, path, _use_new_zipfile_serialization=zipped)
    assert file_kind(str(path)) == ('torch' if zipped else 'legacy')
    loaded = load_file(path)
    assert same(loaded['state_dict'], state)
    assert (loaded['epoch'] == 3 and loaded['args'].lr == 0.1) if wrap else set(loaded) == {'state_dict'}


def test_runner_checkpoint_comes_back_complete(tmp_path, state):
    """What MMEngine's Runner writes: its message hub holds HistoryBuffers, numpy arrays and numbers."""
    from mmengine.logging import MessageHub
    hub = MessageHub.get_instance('weights-test-hub')
    for value in (0.5, 0.25):
        hub.update_scalar('train/loss', value)
    hub.update_info('iter', np.int64(7))
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))])
    whole = dict(
        meta=dict(epoch=1, cfg='a = 1'),
        state_dict=state,
        message_hub=hub.state_dict(),
        optimizer=optimizer.state_dict(),
        param_schedulers=[dict(last_step=1)])
    torch.save(whole, tmp_path / 'epoch_1.pth')
    loaded = load_file(tmp_path / 'epoch_1.pth')
    assert loaded.keys() == whole.keys() and same(loaded['state_dict'], state)
    loss = loaded['message_hub']['log_scalars']['train/loss']
    assert loss.mean() == 0.375 and loss.statistics('min') == 0.25
    assert loaded['optimizer'] == optimizer.state_dict()


def test_metadata_of_the_state_dict_survives(tmp_path):
    torch.save({'state_dict': torch.nn.BatchNorm1d(3).state_dict()}, tmp_path / 'w.pth')
    assert load_file(tmp_path / 'w.pth')['state_dict']._metadata['']['version'] == 2


def test_safetensors_and_npz(tmp_path, state):
    save_file(state, tmp_path / 'w.safetensors')
    assert same(load_file(tmp_path / 'w.safetensors')['state_dict'], state)
    for save in (np.savez, np.savez_compressed):
        save(
            tmp_path / 'w.npz',
            **{
                key.replace('.', '/'): value.numpy()
                for key, value in state.items()
            },
            text=np.array('hello'))
        loaded = load_file(tmp_path / 'w.npz')['state_dict']
        assert same(loaded, {key.replace('.', '/'): value for key, value in state.items()})


def test_torchscript_archive_is_read_without_running_it(tmp_path, monkeypatch):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, 2).half()
            self.norm = torch.nn.BatchNorm2d(4)
            self.turned = torch.nn.Parameter(torch.arange(6.).reshape(2, 3).t())
            self.tied = self.conv.weight
            self.sizes, self.name, self.scale = [1, 2], 'net', 0.5

        def forward(self, x):
            return self.norm(self.conv(x).float()).sum() * self.turned.sum() * self.scale

    net = Net()
    torch.jit.save(torch.jit.script(net), tmp_path / 'net.pt')
    monkeypatch.setattr(torch.jit, 'load', lambda *a, **k: pytest.fail('the archive was handed to the compiler'))
    loaded = load_file(tmp_path / 'net.pt')['state_dict']
    want = dict(net.state_dict())
    assert loaded.keys() == want.keys() and all(torch.equal(loaded[key], want[key]) for key in want)
    assert file_kind(str(tmp_path / 'net.pt')) == 'torchscript'


def test_map_location(tmp_path, state):
    save_file(state, tmp_path / 'w.safetensors')
    torch.save(state, tmp_path / 'w.pth')
    for name in ('w.safetensors', 'w.pth'):
        assert load_file(tmp_path / name, 'meta')['state_dict']['n'].device.type == 'meta'
        assert load_file(tmp_path / name)['state_dict']['n'].device.type == 'cpu'
        for callback in (None, lambda storage, location: storage):
            assert load_file(tmp_path / name, callback)['state_dict']['n'] == 5


@pytest.mark.parametrize('content, name, cause', [
    (b'', 'w.pth', 'empty file'), (b'version https://git-lfs.github.com/spec/v1\n', 'w.pth', 'Git LFS pointer'),
    (b'<!DOCTYPE html>', 'w.pth', 'HTML page'), (b'hello world, no weights', 'w.pth', 'not a weight file'),
    (b'\x89HDF\r\n\x1a\n' + bytes(9), 'w.h5', 'HDF5'), (b'\x1f\x8b' + bytes(20), 'w.pth.tar.gz', 'gzip')])
def test_foreign_files(tmp_path, content, name, cause):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(WeightFileError, match=cause) as error:
        load_file(tmp_path / name)
    assert str(tmp_path / name) in str(error.value) and '\n' not in str(error.value)


def test_missing_file_names_its_neighbour(tmp_path, state):
    torch.save(state, tmp_path / 'epoch_10.pth')
    with pytest.raises(FileNotFoundError, match='did you mean epoch_10.pth'):
        load_file(tmp_path / 'epoch_1O.pth')
    with pytest.raises(FileNotFoundError, match='does not exist either'):
        load_file(tmp_path / 'nowhere' / 'x.pth')
    with pytest.raises(WeightFileError, match='a folder'):
        load_file(tmp_path)


@pytest.mark.parametrize('kind', ['torch', 'legacy', 'safetensors', 'npz', 'torchscript'])
@pytest.mark.parametrize('part', [0.05, 0.5, 0.98])
def test_truncated_files(tmp_path, kind, part):
    state = {'w': torch.arange(4096.)}
    path = tmp_path / {'safetensors': 'w.safetensors', 'npz': 'w.npz'}.get(kind, 'w.pth')
    if kind == 'safetensors':
        save_file(state, path)
    elif kind == 'npz':
        np.savez(path, w=state['w'].numpy())
    elif kind == 'torchscript':
        torch.jit.save(torch.jit.script(torch.nn.Linear(64, 64)), path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == 'torch')
    whole = path.read_bytes()
    path.write_bytes(whole[:int(len(whole) * part)])
    with pytest.raises(WeightFileError) as error:
        load_file(path)
    assert 'truncated' in str(error.value) or 'damaged' in str(error.value) or 'refused' in str(error.value)
    assert '\n' not in str(error.value)


def test_suffix_must_keep_its_promise(tmp_path, state):
    torch.save(state, tmp_path / 'w.safetensors')
    with pytest.raises(WeightFileError, match='the name says .safetensors, the content is a torch file'):
        load_file(tmp_path / 'w.safetensors')
    save_file(state, tmp_path / 'w.pth')  # the other way round nothing is at risk
    assert load_file(tmp_path / 'w.pth')['state_dict'].keys() == state.keys()


@pytest.mark.parametrize('content, cause', [([1, 2], 'holds a list'),
                                            ({
                                                'epoch': 3
                                            }, r"no state dict among its entries \['epoch'\]")])
def test_files_without_a_state_dict(tmp_path, content, cause):
    torch.save(content, tmp_path / 'w.pth')
    with pytest.raises(WeightFileError, match=cause):
        load_file(tmp_path / 'w.pth')


def test_tensors_beside_numbers(tmp_path, state):
    torch.save({**state, 'epoch': 4}, tmp_path / 'w.pth')
    loaded = load_file(tmp_path / 'w.pth')
    assert same(loaded['state_dict'], state) and loaded['epoch'] == 4


# -- writing ----------------------------------------------------------------------------------------------------------


def test_atomic_write_replaces_makes_folders_and_keeps_permissions(tmp_path):
    path = tmp_path / 'a' / 'b' / 'f.bin'
    atomic_write(path, lambda file: file.write(b'one'))
    assert path.read_bytes() == b'one'
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    path.chmod(0o640)
    atomic_write(path, lambda file: file.write(b'two'))
    assert path.read_bytes() == b'two' and path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in path.parent.iterdir()] == ['f.bin']


def test_failing_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / 'f.bin'
    path.write_bytes(b'old')

    def fail(file):
        file.write(b'half')
        raise OSError('disk full')

    with pytest.raises(OSError, match='disk full'):
        atomic_write(path, fail)
    assert path.read_bytes() == b'old' and [entry.name for entry in tmp_path.iterdir()] == ['f.bin']


def test_links_are_followed(tmp_path):
    (tmp_path / 'real').write_bytes(b'old')
    (tmp_path / 'link').symlink_to(tmp_path / 'real')
    atomic_write(tmp_path / 'link', lambda file: file.write(b'new'))
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'real').read_bytes() == b'new'


def test_write_json(tmp_path):
    write_json(tmp_path / 'x.json', {'a': [1, 'é']})
    assert json.loads((tmp_path / 'x.json').read_text('utf-8')) == {'a': [1, 'é']}
    for bad in ({'a': float('nan')}, {'a': object()}):
        with pytest.raises((ValueError, TypeError)):
            write_json(tmp_path / 'x.json', bad)
    assert json.loads((tmp_path / 'x.json').read_text('utf-8')) == {'a': [1, 'é']}


def in_child(work):
    """Run ``work`` in a copy of this process that leaves without clean-up; give back its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return child


@pytest.mark.parametrize('delay', [0.02, 0.05, 0.1, 0.2])
def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new_one(tmp_path, delay):
    """A child rewrites one file over and over and is killed; what is found is always one whole version."""
    path = tmp_path / 'f.bin'
    size = 1 << 20

    def rewrite():
        for version in itertools.count(1):
            atomic_write(
                path, lambda file, byte=version % 251: [file.write(bytes([byte]) * (size // 8)) for _ in range(8)])

    child = in_child(rewrite)
    while not path.exists():
        time.sleep(0.001)
    time.sleep(delay)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    data = path.read_bytes()
    assert data == data[:1] * size


@pytest.mark.parametrize('step', ['write', 'fsync', 'chmod', 'replace'])
def test_death_at_each_step(tmp_path, step):
    """A process that dies inside one step of the write leaves the old content under the name."""
    path = tmp_path / 'f.bin'
    path.write_bytes(b'old')

    def die(*args, **kwargs):
        os._exit(9)

    def write(file):
        file.write(b'new' * 100_000)
        if step == 'write':
            die()

    def work():
        if step != 'write':
            setattr(os, step, die)
        atomic_write(path, write)

    assert os.waitstatus_to_exitcode(os.waitpid(in_child(work), 0)[1]) == 9
    assert path.read_bytes() == b'old'
