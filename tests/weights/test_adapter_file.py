# SPDX-License-Identifier: Apache-2.0
"""Adapter files: what goes in comes out, and a header that lies is refused."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from mmpetl.weights import WeightFileError, adapter_file, load_file

HEADER = dict(
    methods=[dict(type='LoRA', rank=2)],
    tune=['ln1.*'],
    trunk='eval',
    backbone='mmpetl.VisionTransformer',
    base=dict(id='vit-base', checkpoint='ViT-B_16.npz', fingerprint='0' * 64),
    head=['head.fc.weight'],
    classes=['cat', 'dog'],
    preprocessing=dict(mean=[127.5], std=[127.5]),
    metrics={'accuracy/top1': 91.5},
    versions=dict(torch='2.12.1'))


@pytest.fixture
def tensors():
    return {
        'backbone.petl.0.down.0': torch.arange(6.).reshape(2, 3),
        'backbone.ln1.weight': torch.ones(4, dtype=torch.bfloat16),
        'head.fc.weight': torch.eye(2)
    }


def test_round_trip(tmp_path, tensors):
    path = tmp_path / 'adapter.safetensors'
    adapter_file.save(path, tensors, HEADER)
    loaded, header = adapter_file.load(path)
    assert loaded.keys() == tensors.keys() and all(torch.equal(loaded[key], tensors[key]) for key in tensors)
    assert all(loaded[key].dtype == tensors[key].dtype for key in tensors)
    assert {key: header[key] for key in HEADER} == HEADER
    assert header['counts'] == dict(
        total=14, head=4, petl=6, stored=14) and header['format'] == 1 and header['name'] == 'default'
    assert adapter_file.read_header(path) == header


def test_buffers_are_stored_beside_what_trains(tmp_path, tensors):
    """The running statistics of a BatchNorm head are elements of the file and not trainable parameters."""
    tensors['head.bn.running_mean'], tensors['head.bn.num_batches_tracked'] = torch.zeros(3), torch.tensor(7)
    adapter_file.save(tmp_path / 'a.safetensors', tensors, {**HEADER, 'counts': dict(total=14)})
    loaded, header = adapter_file.load(tmp_path / 'a.safetensors')
    assert header['counts']['total'] == 14 and header['counts']['stored'] == 18
    assert loaded['head.bn.num_batches_tracked'] == 7


def test_checkpoint_loader_form(tmp_path, tensors):
    path = tmp_path / 'adapter.safetensors'
    adapter_file.save(path, tensors, HEADER)
    loaded = load_file(path)
    assert loaded['meta']['methods'] == HEADER['methods']
    assert loaded['state_dict']._metadata['backbone']['mmpetl_adapter'] == loaded['meta']


def test_tied_and_strided_tensors_can_be_saved(tmp_path):
    base = torch.arange(12.).reshape(3, 4)
    adapter_file.save(tmp_path / 'a.safetensors', {
        'petl.a': base.t(),
        'petl.b': base,
        'petl.c': base[1]
    }, {
        **HEADER, 'head': []
    })
    loaded, _ = adapter_file.load(tmp_path / 'a.safetensors')
    assert torch.equal(loaded['petl.a'], base.t()) and torch.equal(loaded['petl.c'], base[1])


@pytest.mark.parametrize('change, cause', [(dict(trunk='frozen'), "'trunk' is 'frozen'"),
                                           (dict(methods=[dict(rank=2)]), "every entry of 'methods'"),
                                           (dict(methods='LoRA'), "'methods' is a str"),
                                           (dict(tune=[3]), "'tune' is a list of patterns"),
                                           (dict(base=None), "'base' is a NoneType"),
                                           (dict(base=dict(fingerprint=5)), "'base.fingerprint' is neither"),
                                           (dict(base=dict(checkpoint='../../etc/x')), 'climbs out'),
                                           (dict(name='../evil'), 'cannot name a file'),
                                           (dict(name=''), 'cannot name a file'),
                                           (dict(head=['head.other']), "head key 'head.other'"),
                                           (dict(counts=dict(total=-1)), "'counts' holds"),
                                           (dict(counts=dict(total=True)), "'counts' holds"),
                                           (dict(surprise=1), "unknown key 'surprise'"),
                                           (dict(metrics={'x': float('nan')}), 'cannot be written as JSON'),
                                           (dict(metrics={'x': torch.ones(1)}), 'cannot be written as JSON')])
def test_bad_headers_are_not_written(tmp_path, tensors, change, cause):
    with pytest.raises(WeightFileError, match=cause) as error:
        adapter_file.save(tmp_path / 'a.safetensors', tensors, {**HEADER, **change})
    assert '\n' not in str(error.value) and not list(tmp_path.iterdir())


def test_nothing_and_wrong_suffix_are_not_written(tmp_path, tensors):
    with pytest.raises(WeightFileError, match='no tensor to save'):
        adapter_file.save(tmp_path / 'a.safetensors', {}, HEADER)
    with pytest.raises(WeightFileError, match=r'named \*\.safetensors'):
        adapter_file.save(tmp_path / 'a.pth', tensors, HEADER)
    assert not list(tmp_path.iterdir())


def forge(path, tensors, text):
    save_file(tensors, path, {'mmpetl': text})


@pytest.mark.parametrize('edit, cause',
                         [(lambda h: h.update(format=2), 'format 2, this mmpetl .* reads up to 1 .*update mmpetl'),
                          (lambda h: h.pop('format'), 'no format number'),
                          (lambda h: h.update(format=True), 'no format number'),
                          (lambda h: h.pop('methods'), "'methods' is missing"),
                          (lambda h: h['counts'].update(stored=13), 'the tensors hold 14'),
                          (lambda h: h.update(name='a/b'), 'cannot name a file')])
def test_forged_headers_are_refused(tmp_path, tensors, edit, cause):
    path = tmp_path / 'a.safetensors'
    adapter_file.save(path, tensors, HEADER)
    header = copy.deepcopy(adapter_file.read_header(path))
    edit(header)
    forge(path, tensors, json.dumps(header))
    for read in (adapter_file.load, adapter_file.read_header, load_file):
        with pytest.raises(WeightFileError, match=cause) as error:
            read(path)
        assert str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('text, cause', [
    ('{', 'broken adapter header'), ('[]', 'no format number'), ('{"format": 1, "format": 1}', 'a key occurs twice'),
    ('{"format": NaN}', 'NaN is not allowed'), ('[' * 100_000, 'nested too deeply|broken adapter header')])
def test_broken_json_is_refused(tmp_path, tensors, text, cause):
    path = tmp_path / 'a.safetensors'
    forge(path, tensors, text)
    with pytest.raises(WeightFileError, match=cause):
        adapter_file.load(path)


def test_other_files_are_not_adapters(tmp_path, tensors):
    save_file(tensors, tmp_path / 'plain.safetensors')
    with pytest.raises(WeightFileError, match='without adapter header'):
        adapter_file.load(tmp_path / 'plain.safetensors')
    torch.save(tensors, tmp_path / 'a.pth')
    with pytest.raises(WeightFileError, match='not an adapter file'):
        adapter_file.load(tmp_path / 'a.pth')
    with pytest.raises(FileNotFoundError, match='did you mean plain.safetensors'):
        adapter_file.load(tmp_path / 'plane.safetensors')
