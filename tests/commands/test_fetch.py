# SPDX-License-Identifier: Apache-2.0
"""``mmpetl fetch`` against a server on this machine: whole, resumed, from a mirror, refused, and by hand."""

import hashlib
import io
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from mmengine.config import Config

from mmpetl.commands import fetch
from mmpetl.commands.main import main
from mmpetl.datasets.downloads import DATA, Data, File, unpack
from mmpetl.datasets.prepare import RECIPES
from mmpetl.datasets.tables import ELEVATER, FGVC
from mmpetl.weights.bases import BASES, FILES, Base
from mmpetl.weights.download import DownloadError, download
from mmpetl.weights.io import load_file

ROOT = Path(__file__).parents[2]
CONTENT = bytes(range(256)) * 400


class Handler(BaseHTTPRequestHandler):
    """Serves bytes by name, with ranges; ``cut`` ends a connection early, once."""
    files: dict
    seen: list
    cut: dict

    def do_GET(self):
        name = self.path.lstrip('/')
        self.seen.append((name, self.headers.get('Range')))
        if name not in self.files:
            self.send_error(404)
            return
        data, start = self.files[name], 0
        if self.headers.get('Range'):
            start = int(self.headers['Range'][len('bytes='):-1])
            if start >= len(data):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header('Content-Length', str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:start + self.cut.pop(name, len(data))])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    kind = type('H', (Handler, ), dict(files={'a.pth': CONTENT}, seen=[], cut={}))
    http = ThreadingHTTPServer(('127.0.0.1', 0), kind)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    kind.url = f'http://127.0.0.1:{http.server_port}'
    yield kind
    http.shutdown()
    http.server_close()


def test_a_file_is_checked_and_fetched_once(server, tmp_path):
    digest = ('sha256', hashlib.sha256(CONTENT).hexdigest())
    for _ in range(2):
        path = download([f'{server.url}/a.pth'], tmp_path / 'deep/a.pth', digest, len(CONTENT))
        assert path.read_bytes() == CONTENT
    assert len(server.seen) == 1 and [p.name for p in (tmp_path / 'deep').iterdir()] == ['a.pth']


def test_a_cut_download_goes_on_where_it_was(server, tmp_path):
    server.cut['a.pth'] = 1000
    with pytest.raises(DownloadError, match='ended after 1,000 of 102,400 bytes'):
        download([f'{server.url}/a.pth'], tmp_path / 'a.pth')
    assert (tmp_path / 'a.pth.part').stat().st_size == 1000 and not (tmp_path / 'a.pth').exists()
    assert download([f'{server.url}/a.pth'], tmp_path / 'a.pth').read_bytes() == CONTENT
    assert server.seen[-1] == ('a.pth', 'bytes=1000-')


def test_another_file_is_refused_in_one_line(server, tmp_path):
    with pytest.raises(DownloadError, match=r'serves another file \(its MD5 is \w+, published d9715d\.\.\.\)'):
        download([f'{server.url}/a.pth'], tmp_path / 'a.pth', ('md5', 'd9715d'))
    assert list(tmp_path.iterdir()) == []
    server.files['page.pth'] = b'<!DOCTYPE html>quota exceeded'
    with pytest.raises(DownloadError, match='a page, not a weight file'):
        download([f'{server.url}/page.pth'], tmp_path / 'page.pth', check=fetch.check_weights)
    (tmp_path / 'b.pth').write_bytes(b'x')
    with pytest.raises(DownloadError, match='is there but is not the official file .*: remove it and run again'):
        download([f'{server.url}/a.pth'], tmp_path / 'b.pth', size=5)


def test_a_mirror_comes_first_and_the_official_address_serves_in_its_place(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('MMPETL_CACHE', str(tmp_path))
    base = Base('a', 'a.pth', f'{server.url}/elsewhere/a.pth', 'page', 'A file', 'MIT')
    monkeypatch.setitem(BASES, 'a', base)
    assert main(['fetch', 'a', '--mirror', f'{server.url}']) == 0
    assert [name for name, _ in server.seen] == ['a.pth'] and (tmp_path / 'a.pth').read_bytes() == CONTENT
    server.files['elsewhere/a.pth'] = CONTENT
    (tmp_path / 'a.pth').unlink()
    assert main(['fetch', 'a', '--mirror', f'{server.url}/nothing']) == 0
    assert (tmp_path / 'a.pth').read_bytes() == CONTENT
    (tmp_path / 'a.pth').unlink()
    server.files.clear()
    assert main(['fetch', 'a']) == 1
    err = capsys.readouterr().err
    assert err.startswith('error: cannot fetch a.pth') and str(tmp_path / 'a.pth') in err and len(err.splitlines()) == 1


def archive(names, link=False):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as bundle:
        for name in names:
            info = zipfile.ZipInfo(name)
            if link:
                info.external_attr = 0o120777 << 16
            bundle.writestr(info, 'x')
    return buffer.getvalue()


def test_data_is_unpacked_and_what_remains_is_said(server, tmp_path, monkeypatch, capsys):
    server.files['d.zip'] = archive(['d/kitti/train800.txt'])
    data = Data('d', 'Some data', str(tmp_path / 'd'), (File(f'{server.url}/d.zip', 'd.zip', ''), ), 'https://page',
                ('ask at the page', 'put the lists into {root}/lists'), ('kitti/*.txt', 'lists/*.json'))
    monkeypatch.setitem(DATA, 'd', data)
    assert main(['fetch', 'd']) == 1
    out = capsys.readouterr().out
    assert f'2. put the lists into {tmp_path}/d/lists' in out and f'not there yet: {tmp_path}/d/lists/*.json' in out
    assert (tmp_path / 'd/kitti/train800.txt').is_file() and not (tmp_path / 'd/d.zip').exists()
    (tmp_path / 'd/lists').mkdir()
    (tmp_path / 'd/lists/a.json').touch()
    assert main(['fetch', 'd']) == 0 and 'is complete' in capsys.readouterr().out
    assert len(server.seen) == 1, 'what is there is not fetched again'


@pytest.mark.parametrize('names, link', [(['../out.txt'], False), (['a'], True)])
def test_nothing_leads_out_of_the_folder(tmp_path, names, link):
    path = tmp_path / 'bad.zip'
    path.write_bytes(archive(names, link))
    with pytest.raises(ValueError, match='not unpacked'):
        unpack(path, tmp_path / 'inside')
    assert {p.name for p in tmp_path.rglob('*')} <= {'bad.zip', 'inside'}


def weights_of(node):
    if isinstance(node, dict):
        for key, value in node.items():
            if key == 'checkpoint' and isinstance(value, str):
                yield Path(value).name
            else:
                yield from weights_of(value)
    elif isinstance(node, (list, tuple)):
        for item in node:
            yield from weights_of(item)


def test_every_base_of_the_recipes_has_an_address():
    """Each weight file that a config names is an official one of the table, or made by a recipe of packages."""
    made = {Path(relative).name for relative, *_ in RECIPES.values()}
    named = set()
    for folder in ('e2vpt', 'pevit', 'synqt', 'peers', 'vpetl', 'apt', 'quickstart', 'small_suite'):
        for path in (ROOT / 'configs' / folder).glob('*.py'):
            named |= set(weights_of(Config.fromfile(str(path)).model.to_dict()))
    assert named <= set(FILES) | made and len(named) >= 15
    assert all(base.url.startswith('https://') and base.page.startswith('https://') for base in BASES.values())


def test_every_data_set_of_the_suites_is_known():
    assert {f'elevater/{t}' for t in ELEVATER.tasks} | {f'fgvc/{t}' for t in FGVC.tasks} <= set(DATA)
    assert {'vtab', 'hmdb51', 'ucf101', 'ssv2', 'k400', 'elevater-prompts', 'elevater-knowledge'} <= set(DATA)
    for data in DATA.values():
        assert data.needs and (data.files or data.steps), data.name
        assert all(file.url.startswith(('https://', 'http://')) for file in data.files)


def test_a_missing_weight_file_is_one_line_with_the_command(tmp_path):
    for name, command in (('ViT-B_16.npz', 'mmpetl fetch vit-base-in21k'),
                          ('dinov2_vits14.safetensors', 'mmpetl fetch dinov2-vits14')):
        with pytest.raises(FileNotFoundError, match=f"{name} is missing: '{command}' gets it"):
            load_file(tmp_path / name)


def test_names_are_listed_and_near_ones_offered(capsys):
    assert main(['fetch']) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in (*BASES, *DATA, *RECIPES))
    assert main(['fetch', 'vit-base-in22k']) == 1
    assert "did you mean 'vit-base-in21k'" in capsys.readouterr().err


@pytest.mark.parametrize('place', ['file', 'file/cache', 'link'])
def test_a_cache_that_is_no_folder_is_one_line(place, tmp_path, monkeypatch, capsys):
    (tmp_path / 'file').touch()
    (tmp_path / 'link').symlink_to(tmp_path / 'link')
    monkeypatch.setenv('MMPETL_CACHE', str(tmp_path / place))
    assert main(['fetch', 'dinov2-vits14']) == 1
    said = capsys.readouterr().err
    assert 'the cache folder (MMPETL_CACHE): ' in said and 'name a folder' in said and said.count('\n') == 1
