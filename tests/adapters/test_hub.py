# SPDX-License-Identifier: Apache-2.0
"""Adapters on the Hugging Face hub, against a hub on this machine: addresses, caches, hostile servers, pushing, pages."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import suite_data
import timm
import torch
import transformers
import yaml
from hub_server import Hub, as_endpoint
from safetensors.torch import save as to_bytes
from toy_model import images, trained, write_adapter, write_config

import mmpetl
from mmpetl.adapters.bank import AdapterBank
from mmpetl.clean_errors import one_line
from mmpetl.commands.main import main
from mmpetl.training import run
from mmpetl.training.build import load_trained, read_config
from mmpetl.weights import adapter_file
from mmpetl.weights.hub import HubError, local_path, parse_address
from mmpetl.weights.hub_card import MARK, card

ROOT = Path(__file__).resolve().parents[2]
SECRET = 'hf_SECRETsecretSECRET'
LORA = [dict(type='LoRA', rank=2)]


@pytest.fixture(scope='module')
def toy(tmp_path_factory):
    """A config, an adapter file of it, and the model that wrote it."""
    folder = tmp_path_factory.mktemp('toy')
    config = write_config(folder, LORA)
    model = write_adapter(config, folder / 'a.safetensors', name='flowers', classes=['red', 'green', 'blue'],
                          metrics={'accuracy/top1': 81.25})
    return folder, config, model


@pytest.fixture
def hub(tmp_path):
    with as_endpoint(Hub(), tmp_path / 'cache') as served:
        yield served


def adapter(toy, seed=1):
    if seed == 1:
        return (toy[0] / 'a.safetensors').read_bytes()
    path = toy[0] / f'{seed}.safetensors'
    if not path.exists():
        write_adapter(toy[1], path, seed)
    return path.read_bytes()


def fresh(toy, seed=7):
    return trained(toy[1], seed)


def said(error):
    text = str(error.value)
    assert '\n' not in text and SECRET not in text and text == one_line(error.value)
    return text


# -- addresses --------------------------------------------------------------------------------------------------------


def test_addresses():
    assert parse_address('hf://user/repo') == ('user/repo', 'main', '')
    assert parse_address('hf://user/repo@v1.0/sub/a.safetensors') == ('user/repo', 'v1.0', 'sub/a.safetensors')
    assert parse_address('hf://user/repo@refs/pr/3') == ('user/repo', 'refs/pr/3', '')
    assert parse_address('hf://user/repo@a%2Fb/x') == ('user/repo', 'a/b', 'x')
    assert local_path('~/a.safetensors') == os.path.expanduser('~/a.safetensors')


@pytest.mark.parametrize('address', [
    'hf://', 'hf://user', 'hf:///repo', 'hf://../repo', 'hf://user/..', 'hf://user/a--b', 'hf://user:token@host/repo',
    'hf://user/repo@', 'hf://user/repo@../main', 'hf://user/repo@..%2F..%2Fx', 'hf://user/repo@a//b', 'hf://user/repo/../x',
    'hf://user/repo/a/../../x.safetensors', 'hf://user/repo//a/./b', 'hf://user/repo/C:\\x', 'hf://user/repo/a\x1b[0m',
    'hf://user/re\npo', 'hf://user/repo/a\\..\\b', 'hf://' + 'a' * 300 + '/b', 'hf://user/repo@-x'])
def test_addresses_that_lead_elsewhere(address, hub):
    with pytest.raises(ValueError) as error:
        local_path(address)
    assert said(error).isprintable() and not hub.seen


@pytest.mark.parametrize('name', ['a.pth', 'pytorch_model.bin', 'x.pkl', 'adapter_model.bin', 'config.json', 'run.py'])
def test_other_files_are_never_asked_for(name, hub):
    with pytest.raises(ValueError, match='only adapters'):
        local_path(f'hf://user/repo/{name}')
    assert not hub.seen


# -- fetching ---------------------------------------------------------------------------------------------------------


def test_every_way_that_names_an_adapter(toy, hub, capsys):
    """Python, bank, the commands' loader, MMEngine's, and inspect give what the file itself gives."""
    folder, config, model = toy
    hub.commit('user/repo', {'adapter.safetensors': adapter(toy), 'sub/b.safetensors': adapter(toy)})
    wanted = model(images(), mode='tensor')
    ways = {
        'load_adapter': lambda m: mmpetl.load_adapter(m, 'hf://user/repo'),
        'file': lambda m: mmpetl.load_adapter(m, 'hf://user/repo@main/sub/b.safetensors'),
        'load_trained': lambda m: load_trained(m, 'hf://user/repo', read_config(str(config))),
        'hot_swap': lambda m: AdapterBank(m, 'x').hot_swap('x', 'hf://user/repo'),
    }
    for way, load in ways.items():
        other = fresh(toy)
        assert not torch.equal(other(images(), mode='tensor'), wanted), way
        assert load(other)['name'] == 'flowers', way
        assert torch.equal(other(images(), mode='tensor'), wanted), way
    bank = AdapterBank(fresh(toy), 'x')
    bank.add_file('y', 'hf://user/repo')
    torch.testing.assert_close(torch.stack(bank.predict(images(), ['y', 'y'])), wanted)
    from mmengine.runner.checkpoint import load_checkpoint
    other = fresh(toy)
    load_checkpoint(other, 'hf://user/repo')
    assert torch.equal(other(images(), mode='tensor'), wanted)
    assert main(['inspect', 'hf://user/repo']) == 0
    assert main(['merge', str(config), 'hf://user/repo', '-o', str(folder / 'm.pth')]) == 0
    assert 'LoRA' in capsys.readouterr().out


RUN = """
_base_ = ['{toy}']
model = dict(data_preprocessor=dict(type='ClsDataPreprocessor', mean=[127.5] * 3, std=[127.5] * 3, to_rgb=True))
test_cfg = dict()
pipeline = [dict(type='mmpetl.LoadImage'), dict(type='Resize', scale=(32, 32)), dict(type='PackInputs')]
test_dataloader = dict(batch_size=3, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False), dataset=dict(
    type='mmpetl.ListDataset', data_root=r'{folder}', ann_file='list.txt', classes=['red', 'green', 'blue'],
    pipeline=pipeline))
test_evaluator = dict(type='Accuracy', topk=(1, ))
train_dataloader = test_dataloader
train_cfg = dict(by_epoch=True, max_epochs=1)
log_level = 'ERROR'
"""


def test_test_and_infer_by_address(toy, hub, tmp_path):
    """tools/test.py and infer give from the hub what they give from the file, of an adapter and of a folder of peft."""
    for i in range(6):
        suite_data.put(str(tmp_path / f'{i}.png'), suite_data.image_bytes(i % 3, i))
    suite_data.put_text(str(tmp_path / 'list.txt'), [f'{i}.png {i % 3}' for i in range(6)])
    config = tmp_path / 'run.py'
    config.write_text(RUN.format(toy=toy[1], folder=tmp_path))
    hub.commit('user/repo', {'adapter.safetensors': adapter(toy)})
    mmpetl.save_peft(toy[2], str(tmp_path / 'peft'))
    hub.commit('user/peft', {p.name: p.read_bytes() for p in (tmp_path / 'peft').iterdir()})
    plain = ['--cfg-options', 'model.backbone.petl=[]']
    work = ['--work-dir', str(tmp_path / 'work')]
    wanted = run.test([str(config), str(toy[0] / 'a.safetensors'), *work])
    assert run.test([str(config), 'hf://user/repo', *work]) == wanted
    assert run.test([str(config), 'hf://user/peft', *work, *plain]) == wanted
    assert run.test([str(config), str(tmp_path / 'peft'), *work, *plain]) == wanted
    first = mmpetl.infer(str(config), str(toy[0] / 'a.safetensors'), str(tmp_path / '0.png'), 'cpu')[0]['pred_scores']
    for address, options in {'hf://user/repo': None, 'hf://user/peft': {'model.backbone.petl': []}}.items():
        [found] = mmpetl.infer(str(config), address, str(tmp_path / '0.png'), 'cpu', cfg_options=options)
        assert abs(found['pred_scores'] - first).max() < 1e-6, address


def test_revisions_are_pinned_and_the_cache_is_shared(toy, hub):
    first = hub.commit('user/repo', {'adapter.safetensors': adapter(toy)})
    path = local_path('hf://user/repo')
    second = hub.commit('user/repo', {'adapter.safetensors': adapter(toy, 2)})
    hub.commit('user/repo', {'adapter.safetensors': adapter(toy)}, 'v1')
    assert second != first and Path(local_path('hf://user/repo')).read_bytes() == adapter(toy, 2)
    assert Path(local_path('hf://user/repo@v1')).read_bytes() == adapter(toy)
    before = len(hub.seen)
    assert local_path(f'hf://user/repo@{first}') == path and Path(path).read_bytes() == adapter(toy)
    assert len(hub.seen) == before, 'a whole commit is never asked for twice'
    # what huggingface_hub itself fetched is found, and the reverse
    import huggingface_hub
    assert huggingface_hub.try_to_load_from_cache('user/repo', 'adapter.safetensors', cache_dir=path.split('/models--')[0]
                                                  ) == local_path('hf://user/repo')


def test_offline(toy, hub, caplog, monkeypatch, tmp_path):
    hub.commit('user/repo', {'adapter.safetensors': adapter(toy)})
    path = local_path('hf://user/repo')
    from huggingface_hub import constants
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    before = len(hub.seen)
    assert local_path('hf://user/repo') == path and len(hub.seen) == before
    with pytest.raises(HubError, match='cannot be reached'):
        local_path('hf://user/other')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    hub.tricks['HEAD'] = lambda server, data, headers: server.answer(503)
    assert local_path('hf://user/repo') == path
    # a damaged file of the cache is noticed, and fetched again
    blob = Path(path).resolve()
    blob.write_bytes(adapter(toy)[:-1] + b'x')
    with pytest.raises(HubError):
        local_path('hf://user/repo')
    hub.tricks.clear()
    assert Path(local_path('hf://user/repo')).read_bytes() == adapter(toy)


def test_what_is_not_there(toy, hub):
    hub.commit('user/repo', {'README.md': b'hello'})
    hub.commit('user/half', {'adapter_config.json': b'{"peft_type": "LORA"}'})
    for address, text in {'hf://user/none': 'there is no repository', 'hf://private/x': 'log in',
                          'hf://user/repo@v9': 'no revision v9', 'hf://user/repo': 'neither adapter.safetensors nor',
                          'hf://user/repo/x.safetensors': 'there is no x.safetensors',
                          'hf://user/half': 'neither adapter_model.safetensors nor adapter_model.bin'}.items():
        with pytest.raises(HubError, match=text) as error:
            local_path(address)
        assert address in said(error)


def test_a_folder_of_an_older_peft(toy, hub):
    hub.commit('user/old', {'adapter_config.json': b'{"peft_type": "LORA"}', 'adapter_model.bin': b'pickled'})
    assert sorted(p.name for p in Path(local_path('hf://user/old')).iterdir()) == ['adapter_config.json', 'adapter_model.bin']


# -- hostile servers --------------------------------------------------------------------------------------------------


def _with(**changed):
    return lambda server, data, headers: server.answer(200, data, **{**headers, **changed})


def _raw(data, **changed):
    return lambda server, _, headers: server.answer(200, data, **{**headers, **changed})


def _endless(server, data, headers):
    server.send_response(200)
    for key, value in headers.items():
        server.send_header(key, value)
    server.end_headers()
    try:
        for _ in range(200):
            server.wfile.write(b'\0' * (1 << 20))
    except OSError:
        pass
    server.close_connection = True


def _cut(server, data, headers):
    server.send_response(200)
    server.send_header('Content-Length', str(len(data)))
    server.end_headers()
    server.wfile.write(data[:100])
    server.close_connection = True


def _to(where):
    return lambda server, data, headers: server.answer(302, Location=where(server) if callable(where) else where)


HOSTILE = {
    'another file of the same length': ('GET', lambda s, d, h: s.answer(200, d[:-1] + bytes([d[-1] ^ 1]), **h), 'digest'),
    'a page': ('GET', _raw(b'<html>please log in</html>'), 'ended after 26'),
    'a page of that length': ('GET', lambda s, d, h: s.answer(200, b'<html>'.ljust(len(d)), **h), 'it is a page'),
    'truncated': ('GET', _cut, 'cannot be fetched|ended after'),
    'endless': ('GET', _endless, 'more than the'),
    'gzip': ('GET', lambda s, d, h: s.answer(200, gzip.compress(d), Content_Encoding='gzip', **h), 'ended|digest|more'),
    'an error with a page': ('GET', lambda s, d, h: s.answer(500, b'<html>' * 100), 'answers 500'),
    'a loop of redirections': ('GET', _to(lambda server: server.path), 'cannot be fetched'),
    'a redirection to a file': ('GET', _to('file:///etc/passwd'), 'cannot be fetched'),
    'ETag that climbs': ('HEAD', _with(ETag='"../../../../escaped"'), 'names no commit and digest'),
    'linked ETag that climbs': ('HEAD', _with(X_Linked_ETag='"/tmp/escaped"'), 'names no commit and digest'),
    'commit that climbs': ('HEAD', _with(**{'X-Repo-Commit': '../../../escaped'}), 'names no commit and digest'),
    'no commit': ('HEAD', lambda s, d, h: s.answer(200, d), 'names no commit and digest'),
    'a huge file': ('HEAD', _with(X_Linked_Size=str(1 << 60)), 'bytes; up to'),
    'a negative size': ('HEAD', _with(X_Linked_Size='-5'), 'bytes; up to'),
    'garbage size': ('HEAD', _with(X_Linked_Size='lots'), 'bytes; up to'),
    'forbidden': ('HEAD', lambda s, d, h: s.answer(403), 'answers 403|access'),
    'teapot': ('HEAD', lambda s, d, h: s.answer(418), 'answers 418'),
    'gone for good': ('HEAD', lambda s, d, h: s.connection.shutdown(2), 'cannot be reached'),
}


@pytest.mark.parametrize('trick', HOSTILE)
def test_hostile_servers(trick, toy, hub, tmp_path):
    method, answer, text = HOSTILE[trick]
    hub.commit('user/repo', {'adapter.safetensors': adapter(toy)})
    hub.tricks[method] = answer
    with pytest.raises(HubError, match=text) as error:
        local_path('hf://user/repo')
    assert 'hf://user/repo' in said(error)
    left = [p for p in tmp_path.rglob('*') if p.is_file() or p.is_symlink()]
    assert not left, 'nothing is kept, nothing is written elsewhere'
    assert not os.path.exists('/tmp/escaped')


def test_another_commit_than_the_one_asked_for(toy, hub):
    commit = hub.commit('user/repo', {'adapter.safetensors': adapter(toy)})
    hub.tricks['HEAD'] = _with(**{'X-Repo-Commit': 'a' * 40})
    with pytest.raises(HubError, match='not the one that was asked for'):
        local_path(f'hf://user/repo@{commit}')


def test_the_token_stays_with_the_hub(toy, hub):
    """A redirection to another server, as large files have it, is followed without the token."""
    other = Hub()
    with other.serving():
        hub.commit('user/repo', {'adapter.safetensors': adapter(toy)})
        other.commit('user/repo', {'adapter.safetensors': adapter(toy)})
        hub.tricks['GET'] = _to(lambda server: f'{other.address}/user/repo/resolve/main/adapter.safetensors')
        assert Path(local_path('hf://user/repo')).read_bytes() == adapter(toy)
        assert {a for _, _, a in hub.seen} == {f'Bearer {SECRET}'} and {a for _, _, a in other.seen} == {None}


def test_hostile_content(toy, hub, tmp_path):
    """What arrives whole is read as any stranger's file is."""
    marker = tmp_path / 'it-ran'
    hub.commit('user/pickle', {'adapter.safetensors': b'\x80\x04c__builtin__\neval\n' + str(marker).encode()})
    hub.commit('user/base', {'adapter.safetensors': to_bytes({'w': torch.ones(3)})})
    flipped = bytearray(adapter(toy))
    flipped[-3] ^= 1
    hub.commit('user/flipped', {'adapter.safetensors': bytes(flipped)})
    for repo, text in {'pickle': 'the content is a legacy file', 'base': 'without adapter header',
                       'flipped': 'altered or damaged'}.items():
        for load in (lambda a: mmpetl.load_adapter(fresh(toy), a), lambda a: load_trained(fresh(toy), a)):
            with pytest.raises(ValueError, match=text) as error:
                load(f'hf://user/{repo}')
            said(error)
    assert not marker.exists()


# -- folders of peft --------------------------------------------------------------------------------------------------


@pytest.fixture
def peft_hub(hub, tmp_path):
    """A timm model whose LoRA and head were saved by :func:`mmpetl.save_peft`, on the hub."""
    torch.manual_seed(0)
    model = timm.create_model('test_vit', num_classes=3).eval()
    base = {k: v.clone() for k, v in model.state_dict().items()}
    mmpetl.attach(model, [dict(type='LoRA', rank=2, ops='qv')])
    for parameter in model.petl.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    mmpetl.save_peft(model, str(tmp_path / 'folder'))
    files = {p.name: p.read_bytes() for p in (tmp_path / 'folder').iterdir()}
    hub.commit('user/peft', {**files, **{f'deep/{k}': v for k, v in files.items()}})
    return model.eval(), base


@pytest.mark.parametrize('address', ['hf://user/peft', 'hf://user/peft/deep', 'hf://user/peft/adapter_model.safetensors'])
def test_folders_of_peft(address, peft_hub, tmp_path):
    model, base = peft_hub
    other = timm.create_model('test_vit', num_classes=3)
    other.load_state_dict(base)
    assert mmpetl.load_adapter(other, address)['peft_type'] == 'LORA'
    x = torch.randn(2, 3, 160, 160)
    torch.testing.assert_close(other.eval()(x), model(x))
    local = timm.create_model('test_vit', num_classes=3)
    local.load_state_dict(base)
    mmpetl.load_adapter(local, str(tmp_path / 'folder'))
    torch.testing.assert_close(local.eval()(x), model(x))


def test_peft_is_shown_and_refused_by_name(peft_hub, toy, capsys):
    assert main(['inspect', 'hf://user/peft']) == 0
    assert 'peft_type' in capsys.readouterr().out
    with pytest.raises(ValueError, match='petl=\\[\\]'):
        load_trained(fresh(toy), 'hf://user/peft')
    from mmengine.runner.checkpoint import load_checkpoint
    with pytest.raises(ValueError, match='folder of peft'):
        load_checkpoint(fresh(toy), 'hf://user/peft')


# -- pushing ----------------------------------------------------------------------------------------------------------


def test_push_and_load(toy, hub, capsys):
    folder, config, model = toy
    address = mmpetl.push(str(folder / 'a.safetensors'), 'user/flowers', private=True, licence='cc-by-4.0')
    assert hub.tricks['made'] == [('user/flowers', True)]
    assert address == f'hf://user/flowers@{hub.branches["user/flowers"]["main"]}'
    other = fresh(toy)
    mmpetl.load_adapter(other, address)
    assert torch.equal(other(images(), mode='tensor'), model(images(), mode='tensor'))
    assert hub.files('user/flowers')['adapter.safetensors'] == adapter(toy)
    # a model, under another name, on a branch; the command
    mmpetl.push(model, 'user/flowers', file='sub/b.safetensors', revision='v2', name='again', metrics={'acc': 1.})
    assert set(hub.files('user/flowers', 'v2')) == {'adapter.safetensors', 'sub/b.safetensors', 'README.md'}
    header = mmpetl.load_adapter(fresh(toy), 'hf://user/flowers@v2/sub/b.safetensors')
    assert header['name'] == 'again' and header['metrics'] == {'acc': 1.}
    assert main(['push', str(folder / 'a.safetensors'), 'user/three', '--config', 'quickstart/lora']) == 0
    out = capsys.readouterr()
    assert 'pushed: hf://user/three@' in out.out and SECRET not in out.out + out.err


def test_pages_of_others_are_left_alone(toy, hub):
    path = str(toy[0] / 'a.safetensors')
    hub.commit('user/own', {'README.md': b'my own words'})
    mmpetl.push(path, 'user/own')
    assert hub.files('user/own')['README.md'] == b'my own words'
    mmpetl.push(path, 'user/new')
    mmpetl.push(path, 'user/new', licence='mit')
    assert b'license: mit' in hub.files('user/new')['README.md']


def test_push_refuses_before_anything_is_sent(toy, hub, tmp_path):
    path = str(toy[0] / 'a.safetensors')
    (tmp_path / 'x.safetensors').write_bytes(adapter(toy)[:-5])
    for call, text in {
            lambda: mmpetl.push(path, 'user/../x'): 'no address', lambda: mmpetl.push(path, 'user/x', 'b.pth'): 'safetensors',
            lambda: mmpetl.push(str(tmp_path / 'x.safetensors'), 'user/x'): 'x.safetensors',
            lambda: mmpetl.push(str(tmp_path), 'user/x'): 'is a folder', lambda: mmpetl.push(3, 'user/x'): 'not a int',
            lambda: mmpetl.push(path, 'user/x', '../b.safetensors'): 'out of its folder',
            lambda: mmpetl.push(path, 'user/x', licence='a b\nc'): 'licence', lambda: mmpetl.push(
                path, 'user/x', base_model='x'): 'base_model', lambda: mmpetl.push(path, 'user/x', name='n'): 'header',
            lambda: mmpetl.push(path, 'user/x', tags='word'): 'tags'}.items():
        with pytest.raises(ValueError, match=text) as error:
            call()
        said(error)
    assert not hub.seen


@pytest.mark.parametrize('offline', [False, True], ids=['nobody answers', 'switched off'])
def test_push_without_network_says_what_was_tried(toy, hub, monkeypatch, offline):
    from huggingface_hub import constants
    if offline:
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    else:
        monkeypatch.setattr(constants, 'ENDPOINT', 'http://localhost:9')  # of the port that discards
    with pytest.raises(HubError) as error:
        mmpetl.push(str(toy[0] / 'a.safetensors'), 'user/x')
    text = said(error)
    assert text.startswith(f'hf://user/x: the hub at {"127.0.0.1" if offline else "localhost"} cannot be reached (') and 'go online' in text
    assert all(name in text for name in ('HTTPS_PROXY', 'HF_ENDPOINT', 'HF_HUB_OFFLINE')) and not hub.seen


def test_a_token_is_never_printed(toy, hub, monkeypatch):
    path = str(toy[0] / 'a.safetensors')
    with pytest.raises(HubError, match='log in') as error:
        mmpetl.push(path, 'user/x', token='hf_wrongWRONGwrong')
    assert 'hf_wrong' not in said(error)


# -- pages ------------------------------------------------------------------------------------------------------------


def parts_of(text):
    _, metadata, body = text.split('---\n', 2)
    return yaml.safe_load(metadata), body, body.split('```python\n')[1].split('```')[0]


def pushed(hub, repo):
    return parts_of(hub.files(repo)['README.md'].decode())


def test_a_page_says_what_the_header_says_and_no_more(toy, hub):
    header = adapter_file.load(toy[0] / 'a.safetensors')[1]
    data, body, _ = parts_of(card(header, {}, 'user/flowers', licence='cc-by-4.0'))
    assert data == dict(library_name='mmpetl', license='cc-by-4.0', tags=['mmpetl', 'lora'], metrics=['accuracy'])
    for text in ('81.25', 'red, green, blue', header['base']['fingerprint'], f'{header["counts"]["total"]:,}', 'rank=2'):
        assert text in body
    bare = {k: v for k, v in header.items() if k not in ('metrics', 'classes')}
    data, body, _ = parts_of(card(bare, {}, 'user/flowers'))
    assert 'metrics' not in data and 'license' not in data and 'Measured' not in body and 'no licence' in body
    # every figure on it comes from the header
    numbers = {word.strip('`|,.').replace(',', '') for word in body.split() if word.strip('`|,.').replace(',', '').isdigit()}
    known = json.dumps(bare)
    assert numbers and all(n in known for n in numbers)


def test_names_on_a_page_are_text(toy):
    header = adapter_file.load(toy[0] / 'a.safetensors')[1]
    evil = '<script>alert(1)</script>`x`|[a](http://b)\n# '
    header.update(classes=[evil], metrics={evil: 1.}, name='x', backbone=evil, tune=[evil],
                  base=dict(header['base'], id=evil, fingerprint=evil))
    header['methods'] = [dict(type=evil, rank=evil)]
    header['model'] = dict(header['model'], origin=dict(library='timm', name='x"); import os', type='y'))
    data, body, code = parts_of(card(header, {}, 'user/flowers'))
    assert '<script' not in body and 'import os' not in body and '[a](http' not in body
    assert 'base_model' not in data and body.count('\n# ') == 1
    compile(code, 'page', 'exec')


def run_page(code, monkeypatch, folder):
    monkeypatch.chdir(folder)
    assert len(code.strip().splitlines()) == 3
    space = {}
    exec(compile(code, 'page', 'exec'), space)
    return space


def test_the_three_lines_for_timm_run(hub, monkeypatch, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model('test_vit', num_classes=1000)
    hub.commit('timm/test_vit.r160_in1k', {'model.safetensors': to_bytes(model.state_dict()), 'config.json': json.dumps(
        dict(architecture='test_vit', num_classes=1000, pretrained_cfg=dict(model.pretrained_cfg))).encode()})
    mine = timm.create_model('test_vit', pretrained=True, num_classes=3)
    mmpetl.attach(mine, LORA)
    for parameter in mine.petl.parameters():
        torch.nn.init.normal_(parameter, 0, 0.1)
    mmpetl.push(mine, 'user/timm-lora', base_model='timm/test_vit.r160_in1k')
    data, _, code = pushed(hub, 'user/timm-lora')
    assert data['base_model'] == 'timm/test_vit.r160_in1k' and 'timm' in data['tags']
    found = run_page(code, monkeypatch, tmp_path)['model']
    x = torch.randn(1, 3, 160, 160)
    assert torch.equal(found.eval()(x), mine.eval()(x))


def test_the_three_lines_for_transformers_run(hub, monkeypatch, tmp_path):
    torch.manual_seed(0)
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                                    image_size=32, patch_size=8)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / 'base')
    hub.commit('user/base', {p.name: p.read_bytes() for p in (tmp_path / 'base').iterdir()})
    mine = transformers.ViTForImageClassification.from_pretrained('user/base', num_labels=5, ignore_mismatched_sizes=True)
    mmpetl.attach(mine, LORA)
    mmpetl.push(mine, 'user/hf-lora')
    data, _, code = pushed(hub, 'user/hf-lora')
    assert data['base_model'] == 'user/base'
    found = run_page(code, monkeypatch, tmp_path)['model']
    assert torch.equal(found.eval()(images()).logits, mine.eval()(images()).logits)


def test_without_a_name_the_page_says_so(toy, hub):
    mmpetl.push(toy[2], 'user/plain')
    data, body, code = pushed(hub, 'user/plain')
    assert MARK in body and 'model = ...' in code and 'base_model' not in data
    compile(code, 'page', 'exec')


def test_by_the_environment_alone(toy, tmp_path):
    """HF_ENDPOINT in a process of its own."""
    hub = Hub()
    with hub.serving():
        hub.commit('user/repo', {'adapter.safetensors': adapter(toy)})
        done = subprocess.run([sys.executable, '-m', 'mmpetl.commands.main', 'inspect', 'hf://user/repo'], text=True,
                              capture_output=True, cwd=ROOT, env={**os.environ, 'HF_ENDPOINT': hub.address, 'HF_HUB_CACHE':
                                                                  str(tmp_path), 'PYTHONPATH': str(ROOT)})
    assert done.returncode == 0 and 'LoRA' in done.stdout, done.stderr[-500:]


