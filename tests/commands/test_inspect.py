# SPDX-License-Identifier: Apache-2.0
"""mmpetl inspect: every kind of file is described from its content."""

import json

import pytest
import torch
from toy_model import trained, write_adapter, write_base, write_config

import mmpetl
from mmpetl.commands.inspect import describe
from mmpetl.commands.main import main
from mmpetl.weights import fingerprint

LORA = [dict(type='LoRA', rank=2, ops='qv')]


def described(capsys, *words):
    capsys.readouterr()
    assert main(['inspect', *map(str, words), '--json']) == 0
    return json.loads(capsys.readouterr().out)


def test_a_folder_of_peft(tmp_path, capsys):
    """Described, with either file of tensors, and tried on the model of a config, whose methods are left out."""
    from safetensors.torch import load_file
    config, folder = write_config(tmp_path, LORA), tmp_path / 'folder'
    mmpetl.save_peft(write_adapter(config, tmp_path / 'a.safetensors'), str(folder))
    found = described(capsys, folder, '--config', config)
    assert found['report'] == f'the folder of peft fits the model of {config}: LoRA' and found['entries']['peft: peft_type'] == 'LORA'
    torch.save(load_file(folder / 'adapter_model.safetensors'), folder / 'adapter_model.bin')
    (folder / 'adapter_model.safetensors').unlink()
    again = described(capsys, folder, '--config', config)
    assert (again['tensors'], again['report'], again['kind']) == (found['tensors'], found['report'], 'torch')
    other = tmp_path / 'other.py'
    other.write_text(config.read_text() + "\nmodel['backbone']['arch']['embed_dims'] = 64\nmodel['head']['in_channels'] = 64\n")
    assert main(['inspect', str(folder), '--config', str(other)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(folder) in error and 'has the shape (3, 32), head.fc.weight of this model (3, 64)' in error


def test_a_backbone_for_which_nothing_is_converted_is_said(tmp_path, capsys):
    torch.save({'state_dict': {'cls_token': torch.zeros(1, 1, 8)}}, tmp_path / 'w.pth')
    config = tmp_path / 'c.py'
    config.write_text("default_scope = 'mmpretrain'\ncustom_imports = dict(imports=['mmpetl'], allow_failed_imports=False)\n"
                      "model = dict(backbone=dict(type='mmpetl.DeiT3', arch='small', img_size=32))\n")
    for words in (['inspect', str(tmp_path / 'w.pth'), '--config', str(config)],
                  ['convert', str(tmp_path / 'w.pth'), str(tmp_path / 'o.pth'), '--config', str(config)]):
        assert main(words) == 1
        assert f'{config}: mmpetl.DeiT3 takes the files of its own library as they are' in capsys.readouterr().err.splitlines()[-1]


def test_adapter(tmp_path, capsys):
    config, path = write_config(tmp_path, LORA), tmp_path / 'a.safetensors'
    model = write_adapter(config, path, name='first', classes=['a', 'b', 'c'], metrics=dict(accuracy=0.5))
    found = described(capsys, path)
    assert (found['content'], found['kind']) == ('adapter', 'safetensors')
    assert found['header']['methods'][0]['rank'] == 2
    assert found['header']['base']['fingerprint'] == model.backbone.petl.base_fingerprint()
    assert found['parts'] == {'backbone.petl.lora': 2 * 2 * 2 * (2 * 32), 'head': 3 * 32 + 3}
    assert found['numbers'] == 611 and found['bytes'] == path.stat().st_size
    assert 'mmpetl.VisionTransformer' in found['fits'][0] and 'base.pth' in found['fits'][0]
    assert main(['inspect', str(path)]) == 0
    text = capsys.readouterr().out
    assert 'first' in text and '"rank": 2' in text and 'accuracy 0.5' in text and 'petl 512' in text
    assert '3: a, b, c\n' in text
    many = [f'class {i}' for i in range(1000)]
    assert f'1000: {", ".join(many)}\n' in describe(dict(found, header=dict(found['header'], classes=many))), 'cut'


def test_a_base_that_came_from_no_file(tmp_path, capsys):
    write_base(tmp_path)
    model = trained(write_config(tmp_path, LORA))
    model.backbone.init_cfg = None
    mmpetl.save_adapter(model, str(tmp_path / 'a.safetensors'))
    assert main(['inspect', str(tmp_path / 'a.safetensors')]) == 0
    text = capsys.readouterr().out
    assert text.count('weights that its model did not name') == 2 and 'None' not in text


def test_adapter_on_a_config(tmp_path, capsys):
    config, path = write_config(tmp_path, LORA), tmp_path / 'a.safetensors'
    write_adapter(config, path)
    assert 'fit the model' in described(capsys, path, '--config', config)['report']
    other = write_config(tmp_path, [dict(type='LoRA', rank=3, ops='qv')], 'other.py')
    assert main(['inspect', str(path), '--config', str(other)]) == 1
    assert 'rank=2 in the adapter and rank=3 here' in capsys.readouterr().err
    other = write_config(tmp_path, [*LORA, dict(type='AdaptFormer')], 'more.py')
    assert main(['inspect', str(path), '--config', str(other)]) == 1
    assert 'the adapter holds LoRA, the model has LoRA, AdaptFormer' in capsys.readouterr().err


def test_weights_and_training_checkpoint(tmp_path, capsys):
    base = write_base(tmp_path)
    state = torch.load(base, weights_only=True)['state_dict']
    found = described(capsys, base)
    assert (found['content'], found['format'], found['header']) == ('weights', 'mmpretrain-vit', None)
    assert found['fingerprint'] == fingerprint(state) and found['not_finite'] == []
    assert found['fits'][0] == 'mmpetl.VisionTransformer'
    state['cls_token'] = state['cls_token'] * float('nan')
    torch.save(
        dict(state_dict=state, optimizer=dict(state={}, param_groups=[]), meta=dict(epoch=3)), tmp_path / 'epoch_3.pth')
    found = described(capsys, tmp_path / 'epoch_3.pth')
    assert found['content'] == 'training checkpoint' and found['not_finite'] == ['cls_token']
    assert set(found['entries']) == {'optimizer', 'meta'}
    report = described(capsys, base, '--config', write_config(tmp_path, LORA))['report']
    assert report.startswith(f'mmpretrain-vit -> vit: {len(state)} loaded')


def test_adapter_checkpoint_and_foreign_names(tmp_path, capsys):
    from mmengine.runner.checkpoint import CheckpointLoader
    path = tmp_path / 'a.safetensors'
    write_adapter(write_config(tmp_path, LORA), path)
    torch.save(dict(state_dict=CheckpointLoader.load_checkpoint(str(path))['state_dict']), tmp_path / 'a.pth')
    assert described(capsys, tmp_path / 'a.pth')['content'] == 'adapter checkpoint'
    torch.save({'conv.weight': torch.ones(2)}, tmp_path / 'other.pth')
    found = described(capsys, tmp_path / 'other.pth')
    assert found['format'] is None and found['fits'] == []


@pytest.mark.parametrize('content, said', [(b'hello', 'not a weight file'), (b'', 'empty file')])
def test_refusals(tmp_path, capsys, content, said):
    (tmp_path / 'x.pth').write_bytes(content)
    assert main(['inspect', str(tmp_path / 'x.pth')]) == 1
    assert said in capsys.readouterr().err
    assert main(['inspect', str(tmp_path / 'y.pth')]) == 1
    assert 'did you mean x.pth' in capsys.readouterr().err
