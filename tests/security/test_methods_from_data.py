# SPDX-License-Identifier: Apache-2.0
"""A method in a file is a name, not a path to code: what `load_adapter` and banks build from a stranger's header."""

import copy
import resource
import sys

import pytest
import torch
from cases import BACKBONE, METHODS
from hostile import command, write_header
from toy_model import write_adapter, write_base, write_config

import mmpetl
import mmpetl.weights.adapter_file
from mmpetl.backbones.attach import attach, specs_of
from mmpetl.backbones.from_data import methods_from_data
from mmpetl.sites import parse_layers
from mmpetl.training.build import build_model, read_config


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('adapters')
    write_base(folder)
    write_adapter(write_config(folder, [dict(type='LoRA', rank=2)]), folder / 'good.safetensors')
    return folder


def upstream():
    """A plain upstream backbone."""
    return BACKBONE['vit'].build_upstream()


def evil_types(marker):
    run = dict(type='os.system', command=command(marker))
    return {
        'pipeline': dict(type='mmpretrain.datasets.base_dataset.BaseDataset', pipeline=[run]),
        'system': run,
        'exit': dict(type='sys.exit'),
        'import': dict(type='this.s'),
        'scope': dict(type='mmpetl.LoRA', rank=2),
        'other scope': dict(type='mmpretrain.VisionTransformer'),
        'class path': dict(type='mmpetl.methods.lora.LoRA', rank=2),
        'case': dict(type='lora'),
        'blank': dict(type=' LoRA'),
        'none': dict(type=''),
        'nul': dict(type='LoRA\0'),
        'number': dict(type=7),
        'table': dict(type=dict(type='os.system')),
        'no type': dict(rank=2),
        'text': 'LoRA',
    }


def refused(call, *parts):
    with pytest.raises(ValueError) as error:
        call()
    text = str(error.value)
    assert '\n' not in text and all(part in text for part in parts), text
    return text


@pytest.mark.parametrize('name', [n for n in evil_types('') if n not in ('number', 'table', 'no type', 'text')])
@pytest.mark.parametrize('way', ['load_adapter', 'add_file', 'infer'])
def test_types_in_a_header_run_nothing(tmp_path, folder, name, way):
    marker = tmp_path / 'it-ran'
    cfg = evil_types(marker)[name]
    path = write_header(folder / 'good.safetensors', tmp_path / 'evil.safetensors', lambda h: h.update(methods=[cfg]))
    before = set(sys.modules)
    if way == 'load_adapter':
        refused(lambda: mmpetl.load_adapter(upstream(), str(path)), 'evil.safetensors', 'registered method')
    elif way == 'add_file':
        bank = mmpetl.AdapterBank(upstream())
        refused(lambda: bank.add_file('x', str(path)), 'evil.safetensors', 'registered method')
        assert bank.names == [] and bank.active is None
    else:
        refused(lambda: methods_from_data([cfg], specs_of(upstream()), str(path), 100), 'registered method')
    assert not marker.exists() and 'this' not in set(sys.modules) - before


def test_control_the_same_type_runs_where_a_user_writes_it(tmp_path):
    """The registry does import dotted names: from a config of one's own that is wanted for methods; what is no method is
    refused there too."""
    marker = tmp_path / 'it-ran'
    with pytest.raises(ValueError, match='unknown method'):
        attach(upstream(), [evil_types(marker)['pipeline']])
    assert not marker.exists()
    assert attach(upstream(), [dict(type='mmpetl.methods.lora.LoRA', rank=2)]).petl


@pytest.mark.parametrize('cfg', [c for n, c in evil_types('').items() if n in ('number', 'table', 'no type', 'text')],
                         ids=str)
def test_types_that_are_no_text(cfg):
    refused(lambda: methods_from_data([cfg], specs_of(upstream()), 'x', 100), 'x: ', 'registered method')


@pytest.mark.parametrize('change, part', [
    (dict(specs=[]), "unknown argument 'specs'"),
    (dict(self=1), "unknown argument 'self'"),
    (dict(rnk=2), "did you mean 'rank'"),
    (dict(rank=dict(type='os.system')), 'LoRA'),
    (dict(rank={'0-1': {'0': 2}}), 'not of a kind'),
    (dict(rank={'0-1': [2]}), 'not of a kind'),
    (dict(rank=[[2]]), 'not of a kind'),
    (dict(rank=[2] * 2000), 'not of a kind'),
    (dict(rank=1 << 40), 'not of a kind'),
    (dict(rank=1 << 19), 'numbers'),
    (dict(rank='8' * 500), 'not of a kind'),
    (dict(rank=-1), 'rank'),
    (dict(rank='two'), 'rank'),
    (dict(alpha=1e999), 'not of a kind'),
    (dict(ops=dict(a=1)), 'not of a kind'),
    (dict(ops='q\x1b[2J'), 'not of a kind'),
    (dict(drop_rate=True), 'not of a kind'),
    (dict(drop_rate=7.5), 'drop'),
    (dict(init=None), 'not of a kind'),
    (dict(layers='0-999999999999'), 'block 999999999999'),
    (dict(layers=[0.5]), 'not of a kind'),
    (dict(name='a.b'), 'no name for a method'),
    (dict(name='../x'), 'no name for a method'),
    (dict(name='configs'), 'no name for a method'),
    (dict(name='training'), 'no name for a method'),
    (dict(name=3), 'no name for a method'),
], ids=lambda value: str(value)[:40])
def test_arguments_have_known_names_kinds_and_sizes(change, part):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cfg = {'type': 'LoRA', 'rank': 2, **change}
    refused(lambda: methods_from_data([cfg], specs_of(upstream()), 'evil.safetensors', 100), 'evil.safetensors', part)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50 << 10


def test_many_methods():
    refused(lambda: methods_from_data([dict(type='SSF')] * 33, specs_of(upstream()), 'x', 100), '33 methods')


def test_absurd_ranges_of_layers_take_no_memory():
    with pytest.raises(ValueError, match='names block 99999999999'):
        parse_layers('0-99999999999', 12)


@pytest.mark.parametrize('case', METHODS, ids=lambda case: case.name)
def test_every_honest_method_is_built(case):
    """Every method of the table, on every backbone that carries it, with its tiny and its published arguments."""
    for name in (n for n in case.on if n in BACKBONE):
        backbone = BACKBONE[name].build_upstream()
        built = attach(copy.deepcopy(backbone), case.petl)
        stored = sum(t.numel() for t in built.petl.state_dict().values())
        given = [dict(cfg, name=key) for key, cfg in built.petl.configs.items()]
        checked = methods_from_data(given, specs_of(backbone), 'x', stored)
        again = attach(backbone, checked)
        assert {k: v.shape for k, v in again.petl.state_dict().items()} == {
            k: v.shape for k, v in built.petl.state_dict().items()}


def test_a_file_of_a_dotted_config_names_the_registered_method(tmp_path, folder):
    """A user may write dotted names in a config; the adapter file then holds the plain name, and loads anywhere."""
    path = tmp_path / 'a.safetensors'
    write_adapter(write_config(folder, [dict(type='mmpetl.methods.lora.LoRA', rank=2)], 'dotted.py'), path)
    header = mmpetl.weights.adapter_file.read_header(path)
    assert [m['type'] for m in header['methods']] == ['LoRA']
    model = copy.deepcopy(build_model(read_config(str(write_config(folder, [], 'plain.py')))))
    model.backbone.init_weights()
    bank = mmpetl.AdapterBank(model)
    bank.add_file('a', str(path))
    assert torch.is_tensor(next(iter(bank.tensors('a').values())))
