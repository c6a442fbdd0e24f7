# SPDX-License-Identifier: Apache-2.0
"""One flipped byte is noticed: adapters carry a checksum of their tensors and a digest of their header."""

import json

import pytest
import torch
from safetensors.torch import save

from mmpetl.weights import WeightFileError, adapter_file, fingerprint, load_file
from mmpetl.weights.io import FINGERPRINT_KEY

HEADER = dict(methods=[dict(type='LoRA', rank=2)], tune=[], trunk='eval', backbone='x', base=dict(id='b'))


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_every_flipped_byte_of_an_adapter_is_noticed(tmp_path):
    path = tmp_path / 'a.safetensors'
    adapter_file.save(path, {'backbone.petl.lora.w': torch.arange(6.), 'head.b': torch.ones(2)}, HEADER)
    honest, (tensors, header) = path.read_bytes(), adapter_file.load(path)
    noticed = harmless = 0
    for position in range(len(honest)):
        data = bytearray(honest)
        data[position] ^= 1 << position % 8
        path.write_bytes(data)
        try:
            found = adapter_file.load(path)
        except WeightFileError as error:
            assert str(path) in str(error) and '\n' not in str(error)
            noticed += 1
            continue
        assert same(found[0], tensors) and found[1] == header, f'byte {position} changed the adapter unnoticed'
        harmless += 1
    assert noticed + harmless == len(honest) and harmless < 20  # the name of the digest, blanks behind the JSON


@pytest.mark.parametrize('loader', [adapter_file.load, load_file], ids=['adapter_file', 'load_file'])
def test_what_is_said(tmp_path, loader):
    path = tmp_path / 'a.safetensors'
    adapter_file.save(path, {'w': torch.ones(4)}, HEADER)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightFileError, match='a.safetensors: altered or damaged: its tensors differ from the checksum'):
        loader(path)


def test_files_of_earlier_versions_load(tmp_path):
    """They have no checksum: they load as they did."""
    path = tmp_path / 'a.safetensors'
    adapter_file.save(path, {'w': torch.ones(4)}, HEADER)
    tensors, header = adapter_file.load(path)
    assert header.pop('checksum') == fingerprint(tensors)
    path.write_bytes(save(tensors, {adapter_file.METADATA_KEY: json.dumps(header)}))
    assert same(adapter_file.load(path)[0], tensors) and adapter_file.load(path)[1] == header


def test_what_is_checked_is_what_is_used(tmp_path):
    """Whoever writes into the file afterwards does not change the tensors that were checked."""
    path = tmp_path / 'a.safetensors'
    adapter_file.save(path, {'w': torch.ones(4)}, HEADER)
    tensors, _ = adapter_file.load(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert tensors['w'].eq(1).all()


def test_a_header_that_is_saved_again_gets_a_new_checksum(tmp_path):
    path = tmp_path / 'a.safetensors'
    adapter_file.save(path, {'w': torch.ones(4)}, HEADER)
    adapter_file.save(path, {'w': torch.zeros(4)}, adapter_file.load(path)[1])
    assert adapter_file.load(path)[0]['w'].eq(0).all()


def test_weights_with_a_fingerprint_are_checked(tmp_path):
    path = tmp_path / 'w.safetensors'
    state = {'w': torch.ones(4)}
    path.write_bytes(save(state, {FINGERPRINT_KEY: fingerprint(state)}))
    assert same(load_file(path)['state_dict'], state)
    path.write_bytes(save({'w': torch.zeros(4)}, {FINGERPRINT_KEY: fingerprint(state)}))
    with pytest.raises(WeightFileError, match='differ from the fingerprint'):
        load_file(path)
