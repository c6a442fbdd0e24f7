# SPDX-License-Identifier: Apache-2.0
"""tools/convert_weights.py: what it writes loads into stock upstream backbones, what it refuses leaves no file."""

import numpy as np
import pytest
import torch

from mmpetl.commands.convert import main
from mmpetl.weights import load_file

ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=128)
CONFIG = """
default_scope = 'mmaction'
custom_imports = dict(imports=['mmpetl'], allow_failed_imports=False)
model = dict(backbone=dict(type='mmpetl.VideoMAE', img_size=24, patch_size=4, embed_dims=32, depth=2, num_heads=2, mlp_ratio=4,
                           qkv_bias=True, num_frames=4, petl=[dict(type='LoRA', rank=2)]))
"""


def image_vit(**kwargs):
    from mmpretrain.models import VisionTransformer
    return VisionTransformer(**{**dict(arch=ARCH, img_size=16, patch_size=4), **kwargs})


def randomise(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def source(tmp_path):
    """A file with timm's names, written from a stock model by the inverse of the published table."""
    model = randomise(image_vit())
    names = [('.ffn.layers.0.0.', '.mlp.fc1.'), ('.ffn.layers.1.', '.mlp.fc2.'), ('layers.', 'blocks.'),
             ('.ln1.', '.norm1.'), ('.ln2.', '.norm2.'), ('patch_embed.projection', 'patch_embed.proj')]
    state = {}
    for key, value in model.state_dict().items():
        for old, new in names:
            key = key.replace(old, new)
        state[key.replace('ln1.', 'norm.')] = value
    state |= {'head.weight': torch.ones(5, 32), 'head.bias': torch.ones(5)}
    torch.save({'model': state, 'epoch': 299}, tmp_path / 'published.pth')
    return model, tmp_path / 'published.pth'


@pytest.mark.parametrize('name', ['out.pth', 'out.safetensors'])
def test_round_trip_into_a_stock_model(source, tmp_path, capsys, name):
    model, path = source
    main([str(path), str(tmp_path / name), '--head', 'head.fc'])
    state = load_file(tmp_path / name)['state_dict']
    target = image_vit()
    target.load_state_dict({
        key.removeprefix('backbone.'): value
        for key, value in state.items() if key.startswith('backbone.')
    })
    assert all(torch.equal(a, b) for a, b in zip(target.state_dict().values(), model.state_dict().values()))
    assert torch.equal(state['head.fc.weight'], torch.ones(5, 32))
    assert capsys.readouterr().out.startswith(f'timm-vit -> vit: {len(model.state_dict())} loaded')


def test_to_the_backbone_of_a_config(source, tmp_path, capsys):
    """Inflated, resized to the config's grid, and ready for mmaction2's stock backbone."""
    _, path = source
    (tmp_path / 'config.py').write_text(CONFIG)
    main([str(path), str(tmp_path / 'video.pth'), '--config', str(tmp_path / 'config.py')])
    assert 'timm-vit -> videomae' in capsys.readouterr().out
    from mmaction.models.backbones.vit_mae import VisionTransformer
    stock = VisionTransformer(
        img_size=24, patch_size=4, embed_dims=32, depth=2, num_heads=2, mlp_ratio=4, qkv_bias=True, num_frames=4)
    state = load_file(tmp_path / 'video.pth')['state_dict']
    stock.load_state_dict({key.removeprefix('backbone.'): value for key, value in state.items()}, strict=True)


def test_registers_become_shallow_prompts(tmp_path):
    """DINOv2 with registers through the tool and init_cfg: exactly the features of timm's model."""
    pytest.importorskip('timm', reason='peer timm is not installed')
    from mmengine.registry import init_default_scope
    from timm.models.vision_transformer import VisionTransformer

    from mmpetl.registry import MODELS
    peer = randomise(
        VisionTransformer(
            img_size=16,
            patch_size=4,
            embed_dim=32,
            depth=2,
            num_heads=2,
            num_classes=0,
            init_values=1.,
            reg_tokens=4,
            no_embed_class=True))
    torch.save(peer.state_dict(), tmp_path / 'published.pth')
    with pytest.raises(ValueError, match=r"4 register tokens.*name='registers', num_tokens=4, deep=False"):
        main([str(tmp_path / 'published.pth'), str(tmp_path / 'out.pth')])
    main([str(tmp_path / 'published.pth'), str(tmp_path / 'out.pth'), '--as', 'dinov2-registers'])
    init_default_scope('mmpretrain')
    backbone = MODELS.build(dict(
        type='mmpetl.VisionTransformer', arch=ARCH, img_size=16, patch_size=4, layer_scale_init_value=1.,
        petl=[dict(type='VPT', name='registers', num_tokens=4, deep=False), dict(type='LoRA', rank=2)],
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'out.pth'), prefix='backbone.')))
    backbone.init_weights()
    backbone.train(False), peer.train(False)
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert float((backbone(x)[0] - peer.forward_features(x)[:, 0]).abs().max()) < 1e-5


def test_npz_to_safetensors(tmp_path):
    np.savez(tmp_path / 'bad.npz', **{
        'embedding/kernel': np.zeros((4, 4, 3, 8), np.float32),
        'odd': np.zeros(2, np.float32)
    })
    with pytest.raises(ValueError, match=r'1 keys unexplained \(odd\)'):
        main([str(tmp_path / 'bad.npz'), str(tmp_path / 'out.safetensors')])
    assert not (tmp_path / 'out.safetensors').exists()


@pytest.mark.parametrize('arguments, cause',
                         [(['out.txt'], 'unknown output format'), (['published.pth'], 'is the source itself'),
                          (['out.pth', '--as', 'swim'], "no weight format 'swim'"),
                          (['out.pth', '--arch', 'swin'], 'timm-vit weights do not fit'),
                          (['out.pth', '--arch', 'videomae'], 'give the shapes.* by --config'),
                          (['out.pth', '--arch', 'clip'], "timm-vit weights are made for the architecture 'vit', not for 'clip': give 'vit'"),
                          (['out.pth', '--config', 'config.py', '--arch', 'vit'], "its backbone is 'videomae'")])
def test_refusals_leave_no_file(source, tmp_path, monkeypatch, arguments, cause):
    _, path = source
    (tmp_path / 'config.py').write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=cause):
        main([str(path), *arguments])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ['config.py', 'published.pth']


def test_one_line_on_the_shell(tmp_path, capsys):
    from mmpetl.clean_errors import run_cleanly
    from mmpetl.commands import main as cli
    assert run_cleanly(main, [str(tmp_path / 'none.pth'), str(tmp_path / 'out.pth')]) == 1
    text = capsys.readouterr().err
    assert 'no such weight file' in text and text.count('\n') == 1
    assert cli.main(['convert', str(tmp_path / 'none.pth'), str(tmp_path / 'out.pth')]) == 1
    assert 'no such weight file' in capsys.readouterr().err
