# SPDX-License-Identifier: Apache-2.0
"""mmpetl merge: what it writes loads into stock upstream models and computes the same; what it refuses leaves no
file."""

import pytest
import suite_data
import torch
from cases import BACKBONE, features, perturb
from toy_model import ARCH, images, trained, write_adapter, write_config

import mmpetl
from mmpetl.commands.main import main
from mmpetl.weights import load_file

LORA = [dict(type='LoRA', rank=2, ops='qkv', alpha=4)]


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
@pytest.mark.parametrize('checkpoint', [False, True], ids=['adapter', 'checkpoint'])
def test_the_output_is_a_stock_model(tmp_path, capsys, suffix, checkpoint):
    config, out = write_config(tmp_path, LORA), tmp_path / f'merged.{suffix}'
    model = write_adapter(config, tmp_path / 'a.safetensors')
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'epoch_1.pth')
    source = 'epoch_1.pth' if checkpoint else 'a.safetensors'
    assert main(['merge', str(config), str(tmp_path / source), '-o', str(out)]) == 0
    streams = capsys.readouterr()
    said = streams.out
    assert 'merged lora; max |difference|' in said and 'strict=True' in said
    assert (said + streams.err).count('max |difference|') == 1, 'said twice'
    from mmengine.registry import MODELS
    stock = MODELS.build(dict(
        type='mmpretrain.ImageClassifier', backbone=dict(type='VisionTransformer', **ARCH),
        head=dict(type='LinearClsHead', num_classes=3, in_channels=32)))
    stock.load_state_dict(load_file(out)['state_dict'], strict=True)
    assert 'petl' not in stock.eval().backbone._modules
    with torch.no_grad():
        assert (stock(images()) - model(images())).abs().max() <= 1e-5


def test_backbone_alone(tmp_path):
    from mmpretrain.models import VisionTransformer
    config = write_config(tmp_path, LORA)
    model = write_adapter(config, tmp_path / 'a.safetensors')
    out = tmp_path / 'm.pth'
    assert main(
        ['merge',
         str(config),
         str(tmp_path / 'a.safetensors'), '-o',
         str(out), '--backbone-only', '--no-verify']) == 0
    stock = VisionTransformer(**ARCH)
    stock.load_state_dict(load_file(out)['state_dict'], strict=True)
    stock.eval()
    with torch.no_grad():
        assert (features(stock(images())) - features(model.backbone(images()))).abs().max() <= 1e-5
    assert load_file(out)['meta']['max_difference'] is None


def test_another_base(tmp_path, capsys):
    config = write_config(tmp_path, LORA)
    write_adapter(config, tmp_path / 'a.safetensors')
    moved = tmp_path / 'elsewhere.pth'
    (tmp_path / 'base.pth').rename(moved)
    words = ['merge', str(config), str(tmp_path / 'a.safetensors'), '-o', str(tmp_path / 'm.pth')]
    assert main(words) == 1
    assert 'base.pth' in capsys.readouterr().err
    assert main([*words, '--base', str(moved)]) == 0
    other = load_file(moved)['state_dict']
    torch.save({k: v + 1 for k, v in other.items()}, moved)
    (tmp_path / 'm.pth').unlink()
    assert main([*words, '--base', str(moved)]) == 1
    assert 'wrong base' in capsys.readouterr().err
    assert not (tmp_path / 'm.pth').exists()


@pytest.mark.parametrize('petl, named', [([dict(type='APT', num_tokens=2)], 'apt (APT)'),
                                         ([*LORA, dict(type='AdaptFormer', mid_dims=4)], 'adaptformer (AdaptFormer)')])
def test_what_cannot_be_merged_is_named(tmp_path, capsys, petl, named):
    config, out = write_config(tmp_path, petl), tmp_path / 'm.pth'
    write_adapter(config, tmp_path / 'a.safetensors')
    assert main(['merge', str(config), str(tmp_path / 'a.safetensors'), '-o', str(out)]) == 1
    error = capsys.readouterr().err
    assert named in error.splitlines()[-1] and error.count('error: ') == 1
    assert not out.exists()


def test_outputs_and_inputs_are_checked_first(tmp_path, capsys):
    config = write_config(tmp_path, LORA)
    assert main(['merge', str(config), str(tmp_path / 'none.safetensors'), '-o', str(tmp_path / 'm.bin')]) == 1
    assert '*.pth or *.safetensors' in capsys.readouterr().err
    assert main(['merge', str(config), str(tmp_path / 'none.safetensors'), '-o', str(tmp_path / 'm.pth')]) == 1
    assert 'no such weight file' in capsys.readouterr().err
    model = trained(config)
    torch.save({k: v for k, v in model.state_dict().items() if 'head' not in k}, tmp_path / 'part.pth')
    assert main(['merge', str(config), str(tmp_path / 'part.pth'), '-o', str(tmp_path / 'm.pth')]) == 1
    assert 'head' in capsys.readouterr().err
    assert main(['merge', str(config), str(config), '-o', str(tmp_path / 'm.pth')]) == 1
    assert 'not a weight file' in capsys.readouterr().err


def test_a_key_shift_may_go_only_without_extra_keys():
    """VideoMAE has no key bias. A shift of all keys cancels in the softmax, but not beside keys that do not shift."""
    backbone = BACKBONE['videomae']
    model = backbone.build([dict(type='SSF')])
    perturb(model.petl, 0.2)
    model.eval()
    with torch.no_grad():
        before = features(model(backbone.inputs()))
        assert mmpetl.merge(model).max_difference <= 1e-5
        assert (features(model(backbone.inputs())) - before).abs().max() <= 1e-5
    for extra in (dict(type='APT', num_tokens=2), dict(type='Prefix', num_tokens=2,
                                                       mid_dims=4), dict(type='VPT', num_tokens=2)):
        mixed = backbone.build([dict(type='SSF'), extra])
        with pytest.raises(ValueError, match=f'{extra["type"]}.* cannot be merged'):
            mmpetl.merge(mixed)


@pytest.mark.parametrize('suffix', ['pth', 'safetensors'])
def test_a_merged_model_is_no_adapter(tmp_path, capsys, suffix):
    """A config with methods refuses it in a line, by the options that the page prints it is tested; inspect compares it."""
    for i in range(6):
        suite_data.put(str(tmp_path / f'{i}.png'), suite_data.image_bytes(i % 3, i))
    suite_data.put_text(str(tmp_path / 'list.txt'), [f'{i}.png {i % 3}' for i in range(6)])
    config, out = write_config(tmp_path, LORA), tmp_path / f'm.{suffix}'
    config.write_text(config.read_text() + f"""
test_dataloader = dict(batch_size=3, dataset=dict(
    type='mmpetl.ListDataset', data_root=r'{tmp_path}', ann_file='list.txt', classes=['a', 'b', 'c'],
    pipeline=[dict(type='mmpetl.LoadImage'), dict(type='Resize', scale=(32, 32)), dict(type='PackInputs')]),
    sampler=dict(type='DefaultSampler', shuffle=False))
test_cfg, test_evaluator = dict(), dict(type='Accuracy')
del train_dataloader, optim_wrapper
""")
    write_adapter(config, tmp_path / 'a.safetensors')
    assert main(['merge', str(config), str(tmp_path / 'a.safetensors'), '-o', str(out)]) == 0
    words = ['test', str(config), str(out), '--work-dir', str(tmp_path / 'work')]
    assert main(words) == 1
    assert (f'{out} is a merged model, and the backbone of the config has methods: set model.backbone.petl=[] and '
            'model.backbone.tune=[]') in ' '.join(capsys.readouterr().err.split())
    assert main([*words, '--set', 'model.backbone.petl=[]', 'model.backbone.tune=[]']) == 0
    assert 'accuracy/top1' in capsys.readouterr().out
    for more in ([], ['--config', str(config)]):
        assert main(['inspect', str(out), *more]) == 0
