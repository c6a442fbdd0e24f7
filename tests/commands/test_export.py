# SPDX-License-Identifier: Apache-2.0
"""mmpetl export: what is written is opened and run by the library that it is for."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from cases import perturb
from toy_model import ARCH, images, write_adapter, write_base, write_config

from mmpetl.commands.main import main
from mmpetl.weights import load_file

LORA = [dict(type='LoRA', rank=2, ops='qv', alpha=4)]


def exported(tmp_path, petl, out, *words):
    """The model, after its adapter was exported to ``out``."""
    config = write_config(tmp_path, petl)
    model = write_adapter(config, tmp_path / 'a.safetensors')
    assert main(['export', str(config), str(tmp_path / 'a.safetensors'), '-o', str(tmp_path / out), *words]) == 0
    return model


def close(got, model, tolerance=1e-5):
    with torch.no_grad():
        return bool((got - model(images())).abs().max() <= tolerance)


def timm_model(**more):
    timm = pytest.importorskip('timm')
    arch = ARCH['arch']
    return timm.models.vision_transformer.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=arch['embed_dims'], depth=arch['num_layers'], num_heads=arch['num_heads'],
        mlp_ratio=arch['feedforward_channels'] / arch['embed_dims'], **{'num_classes': 3, **more})


@pytest.mark.peers
@pytest.mark.parametrize(
    'petl, said', [(LORA, 'merged lora'), ([dict(type='APT', num_tokens=2)], 'not merged')], ids=['LoRA', 'APT'])
def test_onnx(tmp_path, capsys, petl, said):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    model = exported(tmp_path, petl, 'm.onnx')
    assert capsys.readouterr().out.count(said) == 1
    session = onnxruntime.InferenceSession(str(tmp_path / 'm.onnx'), providers=['CPUExecutionProvider'])
    for batch in (2, 5):
        x = images(batch, seed=4)
        got = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
        with torch.no_grad():
            assert got.shape == (batch, 3) and (got - model(x)).abs().max() <= 1e-4


def test_safetensors(tmp_path):
    from mmpretrain.models import VisionTransformer
    exported(tmp_path, LORA, 'm.safetensors', '--backbone-only')
    VisionTransformer(**ARCH).load_state_dict(load_file(tmp_path / 'm.safetensors')['state_dict'], strict=True)


@pytest.mark.peers
def test_timm(tmp_path):
    model = exported(tmp_path, LORA, 'm.safetensors', '--to', 'timm')
    peer = timm_model()
    peer.load_state_dict(load_file(tmp_path / 'm.safetensors')['state_dict'], strict=True)
    with torch.no_grad():
        assert close(peer.eval()(images()), model)


@pytest.mark.peers
@pytest.mark.parametrize('options, affine', [(dict(feature_bn=True, scale=3.), True), (dict(normalize=True), False)])
def test_heads_that_are_more_than_a_linear_layer(tmp_path, capsys, options, affine):
    """What can be one linear layer becomes one; what cannot is left out and said, never written as something else."""
    import mmpetl
    from mmpetl.training.build import build_model, read_config
    config = write_config(tmp_path, LORA)
    text = config.read_text().replace("type='LinearClsHead'", f"type='mmpetl.FeatureHead', **{options!r}")
    config.write_text(text)
    model = build_model(read_config(str(config)))
    model.backbone.init_weights()
    perturb(model.backbone.petl), perturb(model.head)
    model(images(8, seed=5))  # running statistics
    model.eval()
    mmpetl.save_adapter(model, str(tmp_path / 'a.safetensors'))
    words = ['export', str(config), str(tmp_path / 'a.safetensors'), '-o', str(tmp_path / 'm.pth'), '--to', 'timm']
    assert main(words) == 0
    state = load_file(tmp_path / 'm.pth')['state_dict']
    assert ('head was left out' in capsys.readouterr().out) == (not affine) == ('head.weight' not in state)
    if affine:
        peer = timm_model()
        peer.load_state_dict(state, strict=True)
        peer.eval()
        with torch.no_grad():
            assert close(peer(images()), model)


@pytest.mark.peers
@pytest.mark.parametrize('pooled', [False, True])
def test_a_classifier_on_dinov2_for_transformers(tmp_path, capsys, pooled):
    """One that reads the class token opens with it; one that reads a mean of the patches is left out and said."""
    transformers = pytest.importorskip('transformers')
    more = "\nmodel['backbone']['layer_scale_init_value'] = 1.\n"
    if pooled:
        more += "model['backbone']['out_type'] = 'featmap'\nmodel['neck'] = dict(type='GlobalAveragePooling')\n"
    write_base(tmp_path, layer_scale_init_value=1.)
    config = write_config(tmp_path, LORA)
    config.write_text(config.read_text() + more)
    model = write_adapter(config, tmp_path / 'a.safetensors')
    words = ['export', str(config), str(tmp_path / 'a.safetensors'), '-o', str(tmp_path / 'hf'), '--to', 'hf']
    assert main(words) == 0
    assert ('head was left out' in capsys.readouterr().out) == pooled
    name = 'Dinov2Model' if pooled else 'Dinov2ForImageClassification'
    assert json.loads((tmp_path / 'hf/config.json').read_text())['architectures'] == [name]
    peer, info = getattr(transformers, name).from_pretrained(str(tmp_path / 'hf'), output_loading_info=True)
    assert not any(info[key] for key in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
    if not pooled:
        with torch.no_grad():
            assert close(peer.eval()(images()).logits, model)


@pytest.mark.peers
def test_peft_on_timm(tmp_path):
    peft = pytest.importorskip('peft')
    model = exported(tmp_path, LORA, 'lora', '--to', 'peft')
    base = write_config(tmp_path, [], 'plain.py')
    with torch.no_grad():
        for parameter in model.backbone.petl.parameters():
            parameter.zero_()
    import mmpetl
    mmpetl.save_adapter(model, str(tmp_path / 'zero.safetensors'))
    config = write_config(tmp_path, LORA)
    assert main([
        'export',
        str(config),
        str(tmp_path / 'zero.safetensors'), '-o',
        str(tmp_path / 'base.safetensors'), '--to', 'timm'
    ]) == 0
    assert base.exists()
    peer = timm_model()
    peer.load_state_dict(load_file(tmp_path / 'base.safetensors')['state_dict'], strict=True)
    with torch.no_grad():
        assert close(peer.eval()(images()), model)
    opened = peft.PeftModel.from_pretrained(peer, str(tmp_path / 'lora')).eval()
    mmpetl.load_adapter(model, str(tmp_path / 'a.safetensors'))
    with torch.no_grad():
        assert close(opened(images()), model)
        with opened.disable_adapter():
            assert not close(opened(images()), model, 1e-3)


_HF = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32, patch_size=8)
#: Base -> (its config, the library's own model, what stands before its names there).
OWN = {
    'timm': (dict(type='mmpetl.TIMM', model_name='vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4),
             lambda: __import__('timm').create_model('vit_tiny_patch16_224', img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=4,
                                                     num_classes=0), ''),
    'hf': (dict(type='mmpetl.HF', config=dict(model_type='vit', **_HF)),
           lambda: (t := __import__('transformers')).ViTForImageClassification(t.ViTConfig(**_HF)), 'vit.'),
}


@pytest.mark.peers
@pytest.mark.parametrize('library, method', [('timm', 'IA3'), ('timm', 'LoRA'), ('hf', 'DoRA'), ('hf', 'IA3')])
def test_peft_on_the_library_that_the_base_is_of(tmp_path, library, method, capsys):
    """All kinds of peft's under the names of the base itself, in another model with a prefix, which the library's own class opens."""
    peft = pytest.importorskip('peft')
    import mmpetl
    from mmpetl.training.build import build_model, read_config
    backbone, build, prefix = OWN[library]
    config = tmp_path / 'own.py'
    config.write_text("default_scope = 'mmpretrain'\ncustom_imports = dict(imports=['mmpetl'], allow_failed_imports=False)\n"
                      f"model = dict(type='ImageClassifier', backbone=dict({backbone!r}, petl=[dict(type={method!r})]),\n"
                      "             head=dict(type='LinearClsHead', num_classes=3, in_channels=32))\n")
    torch.manual_seed(0)
    model = build_model(read_config(str(config))).eval()
    perturb(model.backbone.petl, 0.1)
    mmpetl.save_adapter(model, str(tmp_path / 'a.safetensors'))
    base = {k: v for k, v in model.backbone.state_dict().items() if not k.startswith('petl.')}
    torch.save(base, tmp_path / 'base.pth')
    words = ['export', str(config), str(tmp_path / 'a.safetensors'), '-o', str(tmp_path / 'folder'), '--to', 'peft', '--base',
             str(tmp_path / 'base.pth')]
    assert main([*words, *(['--prefix', prefix] if prefix else [])]) == 0
    peer = build()
    peer.load_state_dict({**peer.state_dict(), **{f'{prefix}{k}': v for k, v in base.items() if f'{prefix}{k}' in peer.state_dict()}})
    theirs = peft.PeftModel.from_pretrained(peer.eval(), str(tmp_path / 'folder')).eval()
    inside = theirs.base_model.model.get_submodule(prefix.rstrip('.')) if prefix else theirs.base_model.model

    def features(of):
        with torch.no_grad():
            out = of(images())
        return out.last_hidden_state[:, 0] if hasattr(out, 'last_hidden_state') else out[-1] if isinstance(out, tuple) else out

    wanted = features(model.backbone)
    assert (features(inside) - wanted).abs().max() <= 1e-5
    with theirs.disable_adapter():
        assert (features(inside) - wanted).abs().max() > 1e-4
    capsys.readouterr()
    for other, to, said in [('x', ['peft', '--library', 'mmpretrain'], 'alone: give --library'),
                            ('x.pth', ['timm'], '--to safetensors --backbone-only writes the names of')]:
        assert main(['export', str(config), words[2], '-o', str(tmp_path / other), '--to', *to, *words[7:]]) == 1
        assert said in ' '.join(capsys.readouterr().err.split())


@pytest.mark.peers
def test_a_clip_of_timm_opens_a_folder_of_peft(tmp_path):
    peft = pytest.importorskip('peft')
    from mmpretrain.models import VisionTransformer

    import mmpetl
    from mmpetl.commands.export import export_library, export_peft
    torch.manual_seed(0)
    model = mmpetl.attach(VisionTransformer(**ARCH, pre_norm=True), [dict(type='LoRA', rank=2)])
    model.eval()
    perturb(model.petl, 0.1)
    wanted = model(images())[-1].detach()
    export_peft(model, 'timm', str(tmp_path / 'folder'))
    perturbed = model.petl['lora']
    with torch.no_grad():
        for parameter in perturbed.parameters():
            parameter.zero_()
    export_library(model, 'timm', str(tmp_path / 'base.pth'), 'a')
    peer = timm_model(pre_norm=True, num_classes=0)
    peer.load_state_dict(load_file(tmp_path / 'base.pth')['state_dict'], strict=True)
    theirs = peft.PeftModel.from_pretrained(peer, str(tmp_path / 'folder')).eval()
    with torch.no_grad():
        assert (theirs(images()) - wanted).abs().max() <= 1e-5


@pytest.mark.peers
def test_the_table_of_exports_is_current():
    for package in ('timm', 'transformers'):
        pytest.importorskip(package)
    root = Path(__file__).resolve().parents[2]
    spec = importlib.util.spec_from_file_location('export_table', root / 'tools' / 'export_table.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    page = (root / 'docs/adapters.md').read_text(encoding='utf-8')
    assert tool.updated(page) == page, 'run python tools/export_table.py --write'


@pytest.mark.slow
@pytest.mark.peers
def test_transformers(tmp_path):
    transformers = pytest.importorskip('transformers')
    model = exported(tmp_path, LORA, 'hf', '--to', 'hf')
    peer = transformers.ViTForImageClassification.from_pretrained(str(tmp_path / 'hf')).eval()
    with torch.no_grad():
        assert close(peer(images()).logits, model)


def test_transformers_folder(tmp_path):
    exported(tmp_path, LORA, 'hf', '--to', 'hf')
    config = json.loads((tmp_path / 'hf' / 'config.json').read_text())
    assert (config['hidden_size'], config['num_attention_heads'], config['num_labels'], config['image_size']) == (32, 4,
                                                                                                                  3, 32)
    state = load_file(tmp_path / 'hf' / 'model.safetensors')['state_dict']
    assert state['classifier.weight'].shape == (3, 32) and not [k for k in state if 'petl' in k]


@pytest.mark.parametrize('out, words, said', [('m.bin', (), 'cannot tell the format'),
                                              ('m.pth', ('--to', 'onnx'), '*.onnx'),
                                              ('m.pth', ('--to', 'timm'), 'apt (APT) is not a change'),
                                              ('m.pth', ('--to', 'openai'), "no export of 'vit' to 'openai'"),
                                              ('folder', ('--to', 'peft'), 'peft opens one LoRA')])
def test_refusals(tmp_path, capsys, out, words, said):
    config = write_config(tmp_path, [dict(type='APT', num_tokens=2)])
    write_adapter(config, tmp_path / 'a.safetensors')
    assert main(['export', str(config), str(tmp_path / 'a.safetensors'), '-o', str(tmp_path / out), *words]) == 1
    assert said in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / out).exists()
