# SPDX-License-Identifier: Apache-2.0
"""Bad calls of the Python face: one ValueError (or a missing file) that names the argument, the value, and how to mend it."""

import sys
from pathlib import Path

import pytest
import torch
from mmpretrain.models import ImageClassifier, VisionTransformer

sys.path.insert(0, str(Path(__file__).parents[1]))
import bad_inputs  # noqa: E402

from mmpetl.apis import (  # noqa: E402
    AdapterBank,
    attach,
    disabled,
    infer,
    load_adapter,
    load_peft,
    merge,
    save_adapter,
    save_peft,
    summary,
)

LORA = dict(type='LoRA', rank=2)


def vit(heads=2, width=16):
    arch = dict(embed_dims=width, num_layers=2, num_heads=heads, feedforward_channels=32)
    return VisionTransformer(arch=arch, img_size=16, patch_size=8)


def attached(*petl, **more):
    return attach(vit(), list(petl) or [LORA], **more)


def classifier():
    head = dict(type='LinearClsHead', num_classes=3, in_channels=16)
    return ImageClassifier(backbone=dict(type=attached), head=head)


def bank():
    return AdapterBank(attached())


ROWS = [
    (lambda: attach(3, [LORA]), '3 is no model'),
    (lambda: attach(None, [LORA]), 'None is no model'),
    (lambda: attach(torch.nn.Linear(3, 3), [LORA]), 'Linear cannot be adapted'),
    (lambda: attach(attached(), [LORA]), 'already has methods attached'),
    (lambda: attach(vit(), 'LoRA'), "petl='LoRA'"),
    (lambda: attach(vit(), 3), 'petl=3'),
    (lambda: attach(vit(), None), 'petl=None'),
    (lambda: attach(vit(), [torch.nn.Linear]), 'is no method'),
    (lambda: attach(vit(), [dict(type='Linear')]), "unknown method 'Linear'"),
    (lambda: attach(vit(3), [LORA]), 'num_heads=3 does not divide the width 16'),
    (lambda: attached(tune=None), 'tune=None'),
    (lambda: attached(tune=[3]), 'tune=[3]'),
    (lambda: attached(with_cp='no'), "with_cp='no'"),
    (lambda: attached(memory=3), 'memory setting 3'),
    (lambda: attached(dict(type='LoRA', alpha=0)), 'alpha=0'),
    (lambda: attached(dict(type='AdaptFormer', scale=[0.1, 0])), 'scale=[0.1, 0]'),
    (lambda: attached(dict(type='AdaptFormer', drop_rate=1)), 'drop_rate=1'),
    (lambda: attached(dict(type='LoRA', layers=1.5)), 'layers=1.5'),
    (lambda: attached(dict(type='LoRA', name=3)), 'name=3'),
    (lambda: summary(vit()), 'has no attached backbone'),
    (lambda: summary(3), '3 is no model'),
    (lambda: disabled(3).__enter__(), '3 is no model'),
    (lambda: save_adapter(vit(), 'x.safetensors'), 'has no attached backbone'),
    (lambda: save_adapter(attached(), 'x.pth'), 'x.pth: an adapter file is named *.safetensors'),
    (lambda: save_adapter(attached(), 3), 'path=3'),
    (lambda: save_adapter(attached(), 'x.safetensors', classes=3), 'classes=3'),
    (lambda: save_adapter(attached(), 'x.safetensors', classes='abc'), "classes='abc'"),
    (lambda: save_adapter(attached(), 'x.safetensors', classes={'a', 'b'}), "classes={'"),
    (lambda: save_adapter(attached(), 'x.safetensors', classes={'a': 0}), "classes={'a': 0}: give a list of names"),
    (lambda: save_adapter(attached(), 'x.safetensors', classes=['a', 3]), 'classes: 3 is no name'),
    (lambda: save_adapter(attached(), 'x.safetensors', classes=['a', None]), 'classes: None is no name'),
    (lambda: save_adapter(classifier(), 'x.safetensors', classes=['a', 'b']), 'classes: 2 names, and the head has 3 classes'),
    (lambda: save_adapter(attached(), 'x.safetensors', metrics=3), 'metrics=3'),
    (lambda: save_adapter(attached(), 'x.safetensors', name=3), "'name' is a int"),
    (lambda: load_adapter(attached(), 'nowhere.safetensors'), 'nowhere.safetensors: no such weight file'),
    (lambda: load_adapter(attached(), 3), 'path=3'),
    (lambda: load_adapter(attached(), None), 'path=None'),
    (lambda: load_adapter(attached(), 'noise.pth'), 'noise.pth: not a weight file'),
    (lambda: load_adapter(attached(), 'base.pth'), 'base.pth: not an adapter file'),
    (lambda: load_adapter(attached(dict(type='LoRA', rank=4)), 'a.safetensors'), 'rank=2 in the adapter and rank=4 here'),
    (lambda: load_adapter(attached(dict(type='AdaptFormer')), 'a.safetensors'), 'the adapter holds LoRA'),
    (lambda: load_adapter(torch.nn.Linear(3, 3), 'a.safetensors'), 'Linear cannot be adapted'),
    (lambda: load_adapter(attached(), 'folder'), 'folder: a folder, not a weight file'),
    (lambda: merge(vit()), 'has no attached backbone'),
    (lambda: merge(attached(dict(type='AdaptFormer'))), 'AdaptFormer'),
    (lambda: merge(attached(), tolerance=-1), 'tolerance=-1'),
    (lambda: merge(attached(), tolerance=float('nan')), 'tolerance=nan'),
    (lambda: merge(attached(), tolerance=float('inf')), 'tolerance=inf: give a finite number above 0'),
    (lambda: merge(attached(), tolerance=0), 'tolerance=0'),
    (lambda: merge(attached(), tolerance=True), 'tolerance=True'),
    (lambda: merge(attached(), tolerance='x'), "tolerance='x'"),
    (lambda: merge(attached(), probe=torch.zeros(3, 3)), 'probe=(3, 3)'),
    (lambda: merge(attached(), probe=3), 'probe=3'),
    (lambda: infer('nowhere.py', 'a.safetensors', 'a.png'), 'config nowhere.py does not exist'),
    (lambda: infer(None, 'a.safetensors', 'a.png'), 'config=None'),
    (lambda: infer('x.py', None, 'a.png'), 'adapter=None'),
    (lambda: infer('x.py', 'a.safetensors', 'a.png', device='x'), "device='x'"),
    (lambda: infer('x.py', 'a.safetensors', 'a.png', channel_order='x'), "channel_order='x'"),
    (lambda: AdapterBank(3), '3 is no model'),
    (lambda: bank().switch('foo'), "no adapter 'foo'"),
    (lambda: bank().using('foo').__enter__(), "no adapter 'foo'"),
    (lambda: bank().delete('foo'), "no adapter 'foo'"),
    (lambda: bank().tensors('foo'), "no adapter 'foo'"),
    (lambda: bank()['defalt'], "no adapter 'defalt'"),
    (lambda: bank().add('default', [LORA]), "there is an adapter 'default' already"),
    (lambda: bank().add('a/b', [LORA]), "'a/b' cannot name a file or folder"),
    (lambda: bank().add('b', 'LoRA'), 'is no method'),
    (lambda: bank().add('b', [dict(type='LoRAA')]), "unknown method 'LoRAA'"),
    (lambda: bank().add('b', [dict(type='Lora')]), "unknown method 'Lora'; did you mean 'LoRA'?"),
    (lambda: bank().add('b', [LORA], head=dict(num_classes=3)), "no part 'num_classes'; VisionTransformer has nothing"),
    (lambda: attached(dict(type='LoRA', ops='query')), "unknown op 'u' in ops='query'; known: q, k, v"),
    (lambda: load_adapter(vit(heads=4, width=32), 'a.safetensors', force=True), 'widths of the blocks'),
    (lambda: bank().add_file('b', 'nowhere.safetensors'), 'nowhere.safetensors: no such weight file'),
    (lambda: bank().add_file('b', 3), 'path=3'),
    (lambda: bank().hot_swap('foo', 'a.safetensors'), "no adapter 'foo'"),
    (lambda: bank().combine('b', {}), 'nothing to combine'),
    (lambda: bank().combine('b', {'default': 1.}, how='liner'), "unknown combination 'liner'"),
    (lambda: bank().combine('b', {'default': 'x'}), "weights['default']='x'"),
    (lambda: bank().combine('b', {'default': float('nan')}), "weights['default']=nan"),
    (lambda: bank().mixed(['foo']).__enter__(), "no adapter 'foo'"),
    (lambda: bank().save('foo', 'x.safetensors'), "no adapter 'foo'"),
    (lambda: bank().save('default', 'x.pth'), 'x.pth: an adapter file is named *.safetensors'),
    (lambda: load_adapter(3, 'a.safetensors'), '3 is no model'),
    (lambda: bank().add('b', None), 'petl=None: give a list of dicts'),
    (lambda: bank().mixed(3).__enter__(), 'adapter_ids=3: give a list'),
    (lambda: bank().combine('b', ['default']), "weights=['default']: give a dict"),
    (lambda: bank().combine('b', 3), 'weights=3: give a dict'),
    (lambda: save_peft(attached(), 3), 'folder=3'),
    (lambda: load_peft(vit(), 'nowhere'), 'nowhere has no adapter_config.json'),
    (lambda: load_peft(vit(), 'folder'), 'folder has no adapter_config.json'),
    (lambda: load_peft(vit(), 3), 'folder=3'),
    (lambda: save_peft(vit(), 'x'), 'has no attached backbone'),
    (lambda: save_peft(attached(), 'noise.pth'), 'noise.pth: a file'),
]


@pytest.fixture(scope='module')
def here(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp('calls'))
        Path('noise.pth').write_bytes(b'\xff' * 99)
        Path('x.py').write_text('x = 3\n')
        Path('folder').mkdir()
        torch.save(vit().state_dict(), 'base.pth')
        save_adapter(attached(), 'a.safetensors')
        yield


@pytest.mark.parametrize('number', range(len(ROWS)))
def test_a_bad_call_is_one_line(here, number):
    call, said = ROWS[number]
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        call()
    text = str(error.value)
    assert said in text and '\n' not in text and bad_inputs.MENDS.search(text), text
    assert not list(Path().glob('x.*sors'))


def test_two_classes_of_one_name_are_said(tmp_path, monkeypatch):
    """Upstream's ImageNet has two cranes, so they are written."""
    said = []
    monkeypatch.setattr('mmpetl.adapters.files.print_log', lambda text, *_: said.append(text))
    save_adapter(classifier(), tmp_path / 'a.safetensors', classes=['crane', 'ibis', 'stork'])
    assert not said
    save_adapter(classifier(), tmp_path / 'a.safetensors', classes=['crane', 'ibis', 'crane'])
    assert said == ["classes: 'crane' names labels 0 and 2, whose predictions will read alike: give each a name of its own"]


@pytest.mark.parametrize('refused', ['a file', 'a folder'])
def test_a_refusal_leaves_the_model_without_methods(refused, tmp_path):
    """Classes, hooks, what trains and names are the model's own again, and the next call finds nothing attached."""
    arch = dict(embed_dims=32, num_layers=2, num_heads=4, feedforward_channels=64)
    other, model = attached(), VisionTransformer(arch=arch, img_size=16, patch_size=8)
    save_peft(other, tmp_path / 'folder')
    save_adapter(other, tmp_path / 'a.safetensors')

    def state():
        return [(name, type(m), sorted(vars(m)), len(m._forward_hooks), len(m._load_state_dict_pre_hooks))
                for name, m in model.named_modules()], [(name, p.requires_grad) for name, p in model.named_parameters()]

    before, picture = state(), torch.rand(1, 3, 16, 16)
    model.eval()  # which returns nothing, upstream
    out = model(picture)[0]
    with pytest.raises(ValueError, match=r'\d'):
        load_peft(model, tmp_path / 'folder') if refused == 'a folder' else load_adapter(model, tmp_path / 'a.safetensors')
    assert state() == before and torch.equal(model(picture)[0], out)
    attach(model, [LORA])
    model.eval()
    torch.testing.assert_close(model(picture)[0], out)
