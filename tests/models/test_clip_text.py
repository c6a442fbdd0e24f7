# SPDX-License-Identifier: Apache-2.0
"""The text tower against open_clip and transformers, and the tool that writes text-feature files."""

import json
import sys
from pathlib import Path

import pytest
import torch

from mmpetl.datasets import Elevater
from mmpetl.datasets.tables.video import VIDEO_SETS as PREPARED
from mmpetl.models import class_weights, load_text_features
from mmpetl.models.clip_text import CLIPTextTower, build_text_tower, encode_classes
from mmpetl.models.text_prompts import VIDEO_SETS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tests'))
import suite_data  # noqa: E402


def tokens():
    ids = torch.randint(1, 90, (3, 12))
    ids[0, 5], ids[1, 11], ids[2, 3] = 99, 99, 99  # end of text, the largest id
    ids[0, 6:], ids[2, 4:] = 0, 0
    return ids


@pytest.mark.peers
@pytest.mark.parametrize('act', ['quick_gelu', 'gelu'])
def test_equals_open_clip(act):
    open_clip = pytest.importorskip('open_clip')
    torch.manual_seed(0)
    peer = open_clip.model.CLIP(
        16,
        dict(layers=1, width=64, patch_size=8, image_size=16),
        dict(context_length=12, vocab_size=100, width=64, heads=1, layers=2),
        quick_gelu=act == 'quick_gelu').eval()
    tower = build_text_tower(peer.state_dict(), act)
    ids = tokens()
    with torch.no_grad():
        torch.testing.assert_close(tower(ids), peer.encode_text(ids), rtol=1e-5, atol=1e-5)
    assert tower.logit_scale.item() == pytest.approx(peer.logit_scale.item())


@pytest.mark.peers
def test_equals_transformers():
    transformers = pytest.importorskip('transformers')
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=100,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=1,
        max_position_embeddings=12,
        projection_dim=16,
        hidden_act='quick_gelu',
        eos_token_id=99,
        bos_token_id=98,
        pad_token_id=0)
    peer = transformers.CLIPTextModelWithProjection(config).eval()
    tower = build_text_tower(peer.state_dict())
    ids = tokens()
    with torch.no_grad():
        torch.testing.assert_close(tower(ids), peer(input_ids=ids).text_embeds, rtol=1e-5, atol=1e-5)


def test_later_tokens_do_not_matter_and_foreign_files_are_refused():
    tower = CLIPTextTower(100, 12, 64, 2, 1, 16).eval()
    torch.nn.init.normal_(tower.text_projection)
    ids = tokens()
    changed = ids.clone()
    changed[0, 6:] = 7  # behind the end of the first text
    torch.testing.assert_close(tower(ids)[0], tower(changed)[0])
    with pytest.raises(ValueError, match='holds no CLIP text tower'):
        build_text_tower({'visual.proj': torch.zeros(2, 2)})
    whole = tower.state_dict()
    assert build_text_tower({n: v for n, v in whole.items() if n != 'logit_scale'})
    with pytest.raises(ValueError, match='a part of a CLIP text tower only: ln_final.bias is missing'):
        build_text_tower({n: v for n, v in whole.items() if n != 'ln_final.bias'})


def test_classes_are_averaged_over_templates():
    tower = CLIPTextTower(100, 12, 64, 1, 1, 16).eval()
    torch.nn.init.normal_(tower.text_projection)

    def tokenize(texts):
        return torch.tensor([[1 + sum(map(ord, t)) % 90, 2, 99] for t in texts])

    got = encode_classes(tower, tokenize, ['cat', 'dog'], ['a {}', 'the {}.'])
    with torch.no_grad():
        want = class_weights(torch.stack([tower(tokenize([f'a {c}', f'the {c}.'])) for c in ('cat', 'dog')]))
    torch.testing.assert_close(got.weight, want)
    assert got.class_names == ('cat', 'dog') and got.templates == ('a {}', 'the {}.')
    with pytest.raises(ValueError, match='has no {}'):
        encode_classes(tower, tokenize, ['cat'], ['a photo'])


@pytest.mark.peers
def test_tool_writes_features_of_a_suite(tmp_path, monkeypatch, capsys):
    pytest.importorskip('open_clip')
    tower = CLIPTextTower(49408, 77, 64, 1, 1, 16)
    torch.nn.init.normal_(tower.text_projection)
    torch.save(tower.state_dict(), tmp_path / 'clip.pth')
    for task in ('eurosat_clip', 'kitti-distance'):
        suite_data.write_elevater(tmp_path, task, dict(test=1))
    assert Elevater('kitti-distance', 'test', data_root=str(tmp_path)).CLASSES == tuple(f'class {i}' for i in range(4))
    (tmp_path / 'p.json').write_text(
        json.dumps({'mnist': dict(classes=[str(i) for i in range(10)], templates=['digit {}'])}))
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    import text_features as tool
    tool.main([str(tmp_path / 'clip.pth'), '--out', str(tmp_path / 'out'), '--suite', 'elevater', '--root', str(tmp_path),
               '--prompts', str(tmp_path / 'p.json'), '--tasks', 'dtd', 'eurosat_clip', 'kitti-distance', 'mnist'])
    # An absent data set is said, and the others are made.
    left = [line for line in capsys.readouterr().out.splitlines() if 'left out' in line]
    assert len(left) == 1 and left[0].startswith('dtd: left out') and 'names its classes' in left[0]
    features = load_text_features(str(tmp_path / 'out/eurosat_clip.npz'), 10, 16)
    assert features.class_names[3] == 'class 3' and features.templates == (
        'a photo of a {}.', ) and features.model == 'clip'
    assert load_text_features(str(tmp_path / 'out/mnist.npz')).templates == ('digit {}', )
    names = [f"'class {i}'" for i in range(10)]
    (tmp_path / 'elevater').mkdir()
    (tmp_path / 'elevater/prompts.py').write_text(
        f"c = [{', '.join(names)}]\nt = ['one {{}}', 'two {{}}']\nclass_map = {{'mnist': c}}\ntemplate_map = {{'mnist': t}}")
    monkeypatch.setenv('MMPETL_CACHE', str(tmp_path))
    tool.main([str(tmp_path / 'clip.pth'), '--suite', 'elevater', '--tasks', 'mnist'])
    # Without --out into the folder that recipes read, with the toolkit's templates.
    assert load_text_features(str(tmp_path / 'text_features/clip/mnist.npz')).templates == ('one {}', 'two {}')


@pytest.mark.peers
def test_tool_writes_features_of_videos(tmp_path, monkeypatch, capsys):
    pytest.importorskip('open_clip')
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    monkeypatch.setenv('MMPETL_CACHE', str(tmp_path))
    import text_features as tool
    tower = CLIPTextTower(49408, 77, 64, 1, 1, 16)
    torch.nn.init.normal_(tower.text_projection)
    torch.save(tower.state_dict(), tmp_path / 'clip.pth')
    words = [str(tmp_path / 'clip.pth'), '--videos', 'hmdb51', '--root', str(tmp_path)]
    with pytest.raises(FileNotFoundError, match=r"classes.txt is missing: 'python tools/prepare_hmdb51.py' writes it"):
        tool.main(words)
    (tmp_path / 'classes.txt').write_text('brush_hair\nTaiChi\nHolding [something]\n')
    tool.main(words)
    # As words, with the templates for actions, into the folder that recipes read.
    features = load_text_features(str(tmp_path / 'text_features/clip/hmdb51.npz'), 3, 16)
    assert features.class_names == ('brush hair', 'tai chi', 'holding something')
    assert len(set(features.templates)) == 48 and 'a video of a person doing {}.' in features.templates
    tool.main([*words, '--template', 'someone {}', '--out', str(tmp_path / 'own.npz')])
    assert load_text_features(str(tmp_path / 'own.npz'), 3, 16).templates == ('someone {}', )
    with pytest.raises(SystemExit):
        tool.main([*words, '--knowledge', 'gpt3', '--out', str(tmp_path)])
    assert 'there is no --knowledge about --videos' in capsys.readouterr().err


def test_missing_features_name_the_command_that_makes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="'python tools/text_features.py clip-vit-base-p32 --suite elevater'"):
        load_text_features(str(tmp_path / 'openai-vit-b-32/dtd.npz'))
    with pytest.raises(FileNotFoundError, match="'python tools/text_features.py clip-vit-base-p16 --videos hmdb51'"):
        load_text_features(str(tmp_path / 'openai-vit-b-16/hmdb51.npz'))
    with pytest.raises(FileNotFoundError, match=r"CLIP_WEIGHTS --videos ucf101 --out .*mine/ucf101.npz' makes it"):
        load_text_features(str(tmp_path / 'mine/ucf101.npz'))


def test_video_sets_are_those_that_are_prepared():
    assert set(PREPARED) == set(VIDEO_SETS)
