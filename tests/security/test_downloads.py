# SPDX-License-Identifier: Apache-2.0
"""Downloads: what was altered is noticed before it is used, archives write below their folder, parts do not stay."""

import functools
import hashlib
import http.server
import io
import json
import stat
import tarfile
import threading
import zipfile
from dataclasses import replace

import pytest
import torch

from mmpetl import compat
from mmpetl.datasets import fetch, prepare
from mmpetl.datasets.arrays import unpacked
from mmpetl.datasets.downloads import unpack
from mmpetl.datasets.sources import SOURCES
from mmpetl.weights import WeightFileError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MMPETL_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(fetch, '_download', lambda *a: pytest.fail('a client was called'))
    return tmp_path / 'cache'


def pinned(cache, monkeypatch, data):
    """An archive in the cache, pinned under 'fluent-emoji', whose members are ``package/assets/*.webp``."""
    source = replace(SOURCES['fluent-emoji'], size=len(data), sha256=hashlib.sha256(data).hexdigest())
    monkeypatch.setitem(SOURCES, 'fluent-emoji', source)
    (cache / 'archives').mkdir(parents=True, exist_ok=True)
    (cache / 'archives' / source.archive).write_bytes(data)
    return source


def tgz(*items):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode='w:gz') as tar:
        for name, kind, content in items:
            item = tarfile.TarInfo(name)
            item.type, item.mode = kind, 0o644
            if kind == tarfile.REGTYPE:
                item.size = len(content)
                tar.addfile(item, io.BytesIO(content))
            else:
                item.linkname = content
                tar.addfile(item)
    return data.getvalue()


def zipped(*items):
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w', zipfile.ZIP_DEFLATED) as bundle:
        for name, kind, content in items:
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = {tarfile.SYMTYPE: stat.S_IFLNK, tarfile.CHRTYPE: stat.S_IFCHR}.get(kind, 0) << 16
            bundle.writestr(info, content)
    return data.getvalue()


FILE, A = tarfile.REGTYPE, 'package/assets/a.webp'
EVIL = {
    'climbs': (FILE, 'package/assets/../../../../out.webp', b'2'),
    'symbolic link': (tarfile.SYMTYPE, 'package/assets/out.webp', '/etc/passwd'),
    'device': (tarfile.CHRTYPE, 'package/assets/out.webp', ''),
    'hard link': (tarfile.LNKTYPE, 'package/assets/out.webp', A),
    'pipe': (tarfile.FIFOTYPE, 'package/assets/out.webp', ''),
    'bomb': (FILE, 'package/assets/out.webp', bytes(80 << 20)),
}


@pytest.mark.parametrize('pack, kind', [(tgz, kind) for kind in EVIL] +  # a zip archive has no hard links and pipes
                         [(zipped, kind) for kind in EVIL if kind not in ('hard link', 'pipe')])
def test_archives_write_only_files_below_their_folder(cache, tmp_path, monkeypatch, pack, kind):
    (what, name, content) = EVIL[kind]
    pinned(cache, monkeypatch, pack((A, FILE, b'1'), (name, what, content)))
    with pytest.raises(fetch.FetchError) as error:
        fetch.extract('fluent-emoji')
    assert '\n' not in str(error.value) and 'not used' in str(error.value)
    assert not list(tmp_path.rglob('*.webp')) and not list((cache / 'raw').iterdir())


@pytest.mark.parametrize('damage', ['cut', 'flipped'])
@pytest.mark.parametrize('pack', [tgz, zipped], ids=['tar', 'zip'])
def test_damaged_archives_are_one_line(cache, monkeypatch, pack, damage):
    """Also where the digest would be right: what an archive library raises is our own error."""
    data = bytearray(pack((A, FILE, b'1' * 4000), ('package/assets/b.webp', FILE, b'2' * 4000)))
    if damage == 'flipped':
        data[len(data) // 2] ^= 255
    source = pinned(cache, monkeypatch, bytes(data if damage == 'flipped' else data[:len(data) // 2]))
    path = fetch.archive(source)
    try:
        found = {name: read() for name, read in fetch.members(source, path)}
        assert set(found) <= {'a.webp', 'b.webp'}
    except (fetch.FetchError, OSError, zipfile.BadZipFile) as error:
        assert '\n' not in str(error)


def test_an_unpacked_folder_is_checked_again(cache, monkeypatch):
    source = pinned(cache, monkeypatch, tgz((A, FILE, b'1'), ('package/assets/b.webp', FILE, b'2')))
    folder, said = fetch.extract('fluent-emoji'), []
    assert fetch.extract('fluent-emoji', said.append) == folder and said == []
    for damage in (lambda: (folder / 'a.webp').write_bytes(b'X'), lambda: (folder / 'a.webp').unlink(),
                   lambda: (folder / fetch.NOTE).write_text('{}'), lambda: (folder / fetch.NOTE).unlink(),
                   lambda: (folder / fetch.NOTE).write_text(json.dumps({'../../x': '0'}))):
        damage()
        said.clear()
        assert fetch.extract('fluent-emoji', said.append) == folder
        assert 'altered' in said[0] and (folder / 'a.webp').read_bytes() == b'1'
    (cache / 'archives' / source.archive).write_bytes(b'altered too')
    (folder / 'b.webp').write_bytes(b'X')
    monkeypatch.setattr(fetch, '_download', lambda source, part, target: (part / source.archive).write_bytes(b'other'))
    with pytest.raises(fetch.FetchError, match='SHA-256'):
        fetch.extract('fluent-emoji', said.append)


def test_a_prepared_folder_is_checked_again(cache):
    said = []
    folder = prepare.prepare('digits10', said.append)
    prepare.prepare('digits10', said.append)
    assert 'is there already' in said[-1]
    image = next((folder / 'images').rglob('*.png'))
    honest = image.read_bytes()
    image.write_bytes(honest[:-1] + b'\0')
    prepare.prepare('digits10', said.append)
    assert 'made again' in said[-2] and image.read_bytes() == honest


def test_gzip_bombs():
    import gzip
    with pytest.raises(fetch.FetchError, match='x.gz: a gzip bomb'):
        unpacked(gzip.compress(bytes(80 << 20), 9), 'x.gz')
    with pytest.raises(fetch.FetchError, match='damaged'):
        unpacked(gzip.compress(b'1' * 1000)[:20], 'x.gz')


@pytest.mark.parametrize('pack', [tgz, zipped], ids=['tar', 'zip'])
@pytest.mark.parametrize('kind', ['climbs', 'symbolic link', 'device'])
def test_archives_of_data_sets(tmp_path, pack, kind):
    what, _, content = EVIL[kind]
    path = tmp_path / 'in/data.archive'
    path.parent.mkdir()
    name = {'climbs': 'a/../../../out'}.get(kind, 'out')
    path.write_bytes(pack(('a/b.png', FILE, b'1'), (name, what, content)))
    try:
        unpack(path, tmp_path / 'in/target')
    except ValueError as error:
        assert '\n' not in str(error)
    assert not (tmp_path / 'out').exists() and not (tmp_path / 'in/out').exists()
    out = tmp_path / 'in/target/out'
    assert not out.is_symlink() and (not out.exists() or stat.S_ISREG(out.stat().st_mode))


# -- weights by address -----------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """(folder, address) of files served on this machine."""
    folder = tmp_path / 'served'
    folder.mkdir()
    handler = type('Quiet', (http.server.SimpleHTTPRequestHandler, ), {'log_message': lambda *a: None})
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), functools.partial(handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f'http://127.0.0.1:{server.server_port}'
        server.shutdown()


def test_weights_with_a_digest_in_their_name_are_checked_at_every_load(tmp_path, server):
    folder, address = server
    data = io.BytesIO()
    torch.save({'state_dict': {'w': torch.ones(2)}}, data)
    name = f'x-{hashlib.sha256(data.getvalue()).hexdigest()[:8]}.pth'
    (folder / name).write_bytes(data.getvalue())
    cached = tmp_path / 'cached' / name
    for damage in (lambda: None, lambda: cached.write_bytes(b'altered'), lambda: cached.write_bytes(data.getvalue()[:99])):
        damage()
        loaded = compat.load_from_http(f'{address}/{name}', 'cpu', str(cached.parent))
        assert loaded['state_dict']['w'].eq(1).all() and [p.name for p in cached.parent.iterdir()] == [name]
    (folder / name).write_bytes(b'something else')
    cached.unlink()
    with pytest.raises(RuntimeError, match='invalid hash'):
        compat.load_from_http(f'{address}/{name}', 'cpu', str(cached.parent))
    assert list(cached.parent.iterdir()) == []


def test_a_download_that_is_no_weight_file_is_not_kept(tmp_path, server):
    folder, address = server
    data = io.BytesIO()
    torch.save({'state_dict': {'w': torch.ones(2000)}}, data)
    for content in (data.getvalue()[:len(data.getvalue()) // 2], b'<html>not found</html>', b''):
        (folder / 'x.pth').write_bytes(content)
        with pytest.raises((WeightFileError, RuntimeError)) as error:
            compat.load_from_http(f'{address}/x.pth', 'cpu', str(tmp_path / 'cached'))
        assert '\n' not in str(error.value) and list((tmp_path / 'cached').iterdir()) == []
    with pytest.raises(ValueError, match='cannot name a file'):
        compat.load_from_http(f'{address}/..', 'cpu', str(tmp_path / 'cached'))
