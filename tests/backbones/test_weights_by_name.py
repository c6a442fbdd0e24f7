# SPDX-License-Identifier: Apache-2.0
"""Bases that timm and transformers load by a name: from a file or folder, from a hub that is not there, and not at all."""

import re

import pytest
import torch
from mmengine.config import Config

import mmpetl  # noqa: F401
from mmpetl.clean_errors import run_cleanly
from mmpetl.registry import MODELS
from mmpetl.training.build import build_model
from mmpetl.weights.bases import HUB

timm, transformers = pytest.importorskip('timm'), pytest.importorskip('transformers')
VIT = dict(patch_size=8, embed_dim=32, depth=2, num_heads=2)
DINO = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8)


@pytest.fixture
def folder(tmp_path):
    """A file of timm with its head, at 64 px, and a folder of transformers."""
    torch.manual_seed(0)
    torch.save(timm.create_model('vit_tiny_patch16_224', img_size=64, num_classes=7, **VIT).state_dict(), tmp_path / 'vit.pth')
    transformers.Dinov2Model(transformers.Dinov2Config(**DINO)).save_pretrained(tmp_path / 'dino')
    return tmp_path


def no_hub(*args, **kwargs):
    raise OSError("We couldn't connect to the hub.\nSee how to run the library in offline mode.")


def test_a_file_of_timm_loads_as_from_its_hub(folder):
    """Its head is left out and its positions are resized, as timm's own ``pretrained=True`` does with that file."""
    built = MODELS.build(dict(type='mmpetl.TIMM', model_name='vit_tiny_patch16_224', checkpoint_path=str(folder / 'vit.pth'),
                              img_size=32, **VIT))
    wanted = timm.create_model('vit_tiny_patch16_224', pretrained=True, num_classes=0, img_size=32,
                               pretrained_cfg_overlay=dict(file=str(folder / 'vit.pth')), **VIT).state_dict()
    found = {k: v for k, v in built.state_dict().items() if not k.startswith('petl.')}
    assert found.keys() == wanted.keys() and all(torch.equal(v, wanted[k]) for k, v in found.items())
    assert built.pos_embed.shape[1] == 17 and not torch.equal(built.pos_embed[:, 1:], torch.zeros(1, 16, 32))


@pytest.mark.parametrize('name', ['missing.pth', 'page.pth'])
def test_no_weight_file(folder, name, capfd):
    (folder / 'page.pth').write_text('<html>not found</html>')
    arguments = dict(type='mmpetl.TIMM', model_name='vit_tiny_patch16_224', checkpoint_path=str(folder / name), **VIT)
    with pytest.raises((FileNotFoundError, ValueError), match=name):
        MODELS.build(arguments)
    assert run_cleanly(lambda argv: MODELS.build(arguments), []) == 1
    assert len([line for line in capfd.readouterr().err.splitlines() if line.startswith('error:')]) == 1


def test_a_folder_of_transformers_must_be_what_the_config_says(folder):
    name = str(folder / 'dino')
    built = MODELS.build(dict(type='mmpetl.HF', model_name=name, config=dict(model_type='dinov2', **DINO)))
    saved = transformers.Dinov2Model.from_pretrained(name).state_dict()
    assert all(torch.equal(v, saved[k]) for k, v in built.state_dict().items() if not k.startswith('petl.'))
    for wrong, message in ((dict(DINO, model_type='dinov2', num_attention_heads=4), 'num_attention_heads=2, and its config here says 4'),
                           (dict(model_type='vit'), "tower='Dinov2Model', and its config here says 'ViTModel'")):
        with pytest.raises(ValueError, match=message):
            MODELS.build(dict(type='mmpetl.HF', model_name=name, config=wrong))
    with pytest.raises(ValueError, match='needs model_name='):
        MODELS.build(dict(type='mmpetl.HF'))


def test_a_hub_that_is_not_there_is_one_line_with_what_to_set(monkeypatch):
    monkeypatch.setattr(transformers.AutoConfig, 'from_pretrained', no_hub)
    monkeypatch.setattr(timm, 'create_model', no_hub)
    for settings, what in ((dict(type='mmpetl.HF', model_name='facebook/dinov2-small'), 'model_name='),
                           (dict(type='mmpetl.TIMM', model_name='vit_tiny_patch16_224', pretrained=True), 'checkpoint_path=')):
        with pytest.raises(ValueError, match=f"of '{settings['model_name']}' cannot be had .*couldn't connect.*{what}") as found:
            MODELS.build(settings)
        assert '\n' not in str(found.value)


@pytest.mark.parametrize('recipe', ['timm-dinov2-small_lvd142m-pre_1xb64-coslr-100e_vtab', 'hf-dinov2-small_lvd142m-pre_1xb64-coslr-100e_vtab'])
def test_a_model_without_weights_asks_no_hub(recipe, monkeypatch):
    """What ``mmpetl plan`` builds."""
    monkeypatch.setattr('huggingface_hub.file_download.hf_hub_download', no_hub)
    monkeypatch.setattr(transformers.AutoConfig, 'from_pretrained', no_hub)
    with torch.device('meta'):
        model = build_model(Config.fromfile(f'{mmpetl.__path__[0]}/../configs/backbones/lora_{recipe}.py'), weights=False)
    assert model.backbone.petl.lora is not None


def test_pages_and_licences_are_those_that_timm_knows():
    def letters(licence):
        return re.sub('[^a-z0-9]', '', licence.lower())

    own = {name: base for name, base in HUB.items() if base.name.startswith('timm/')}
    for name, base in own.items():
        found = timm.get_pretrained_cfg(name)
        assert (found.hf_hub_id, letters(found.license)) == (base.name, letters(base.licence)), name
    assert len(own) == 5
