# SPDX-License-Identifier: Apache-2.0
"""The small suite from archives of the right form: lists, images, both forms, and what is refused."""

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mmpetl.commands.main import main
from mmpetl.datasets import Elevater, VTAB1k, fetch, prepare, small_tasks
from mmpetl.datasets.sources import SOURCES
from mmpetl.weights.reading import read_arrays

CONFIGS = Path(__file__).parents[2] / 'configs/small_suite'


def test_equal_numbers_of_every_class():
    rows = [[(f'{c}/{i}'.encode(), '.png') for i in range(520)] for c in range(2)]
    task = small_tasks.by_class('t', ['a', 'b'], [r[:500] for r in rows], [r[500:] for r in rows], 40)
    assert [len(part) for part in task[1:]] == [800, 200, 40]
    assert all([p.label for p in part].count(1) == len(part) // 2 for part in task[1:])
    assert len({p.data for part in task[1:] for p in part}) == 1040 and task.val200[1].data == rows[1][400][0]
    with pytest.raises(ValueError, match="t: class 'b' has 499 images, 500 are needed"):
        small_tasks.by_class('t', ['a', 'b'], [rows[0], rows[1][:499]], rows, 40)


def test_rows_of_a_packed_array(tmp_path):
    images = np.arange(50 * 6, dtype=np.uint16).reshape(50, 2, 3)
    np.savez_compressed(tmp_path / 'a.npz', imgs=images, turned=np.asfortranarray(images), odd=np.array([{}], object))
    wanted = [0, 1, 7, 30, 49]
    assert all(
        np.array_equal(a, images[i])
        for a, i in zip(small_tasks.stored_rows(tmp_path / 'a.npz', 'imgs', wanted), wanted))
    for name, rows, message in (('imgs', [3, 50], 'has 50 rows, row 50'), ('img', [0], "no array 'img'"),
                                ('turned', [0], 'C order'), ('odd', [0], 'plain numbers')):
        with pytest.raises(ValueError, match=message):
            list(small_tasks.stored_rows(tmp_path / 'a.npz', name, rows))


def test_rows_of_an_array_that_packs_as_well_as_the_sprites(tmp_path):
    images = np.zeros((20000, 64, 64), np.uint8)  # 82 MB that pack into 80 kB
    images[:, 5, 5] = np.arange(20000) % 251
    np.savez_compressed(tmp_path / 'a.npz', imgs=images, classes=np.arange(9), row=np.zeros((1, 65 << 20), np.uint8))
    assert [row[5, 5] for row in small_tasks.stored_rows(tmp_path / 'a.npz', 'imgs', [3, 250])] == [3, 250]
    assert read_arrays(tmp_path / 'a.npz', ['classes'])['classes'][8] == 8
    with pytest.raises(ValueError, match='zip bomb'):
        read_arrays(tmp_path / 'a.npz', ['classes', 'imgs'])
    with pytest.raises(ValueError, match="a row of the array 'row' takes 68,157,440 bytes"):
        list(small_tasks.stored_rows(tmp_path / 'a.npz', 'row', [0]))


def _sprites():
    """A member as dSprites has it: 2,000 images of 64 px whose first pixels tell the position."""
    positions = np.arange(2000) % 32
    images = np.zeros((2000, 64, 64), np.uint8)
    images[np.arange(2000), 0, positions] = 1
    images[np.arange(2000), 1 + np.arange(2000) // 32, 63] = 1  # no two alike
    classes = np.stack([np.zeros(2000, int)] * 4 + [positions, positions], 1)
    data = io.BytesIO()
    np.savez_compressed(data, imgs=images, latents_classes=classes, metadata=np.array({}, object))
    return data.getvalue()


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A cache folder whose archives hold what the recipes need, and no way to the network."""
    monkeypatch.setenv('MMPETL_CACHE', str(tmp_path))
    monkeypatch.setattr(fetch.subprocess, 'run', lambda *a, **k: pytest.fail(f'a client was called: {a}'))
    rays = {f'{part}/{kind}/{i:04d}.jpeg': f'{part}{kind}{i}'.encode() for part, n in (('train', 500), ('test', 251))
            for kind in ('NORMAL', 'PNEUMONIA') for i in range(n)}
    rays['test/NORMAL/0003.jpeg'] = rays['train/NORMAL/0005.jpeg']  # as in the package: it must not be tested on
    for name, members in (('xray', {f'sofiimg/datasets/pneumonia/{k}': v for k, v in rays.items()}),
                          ('dsprites', {SOURCES['dsprites'].members: _sprites()})):
        data = io.BytesIO()
        with zipfile.ZipFile(data, 'w') as archive:
            for member, content in members.items():
                archive.writestr(member, content)
        path = tmp_path / 'archives' / SOURCES[name].archive
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data.getvalue())
        digest = fetch.hashlib.sha256(members[SOURCES[name].members]).hexdigest() if name == 'dsprites' else ''
        monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], sha256=fetch.sha256_of(path), member_sha256=digest))
    monkeypatch.setattr(
        small_tasks, 'quickdraw_classes', lambda say: {
            f'class {c:02d}': np.full(
                (100, 28, 28), 10 * c, np.uint8) + np.arange(100, dtype=np.uint8)[:, None, None] % 8
            for c in range(20)
        })
    return tmp_path


def test_small_suite(sources, capsys):
    folder = prepare.prepare('small-suite')
    with open(folder / 'about.json') as file:
        about = json.load(file)['tasks']
    assert {
        k: (v['classes'], *v['images'].values())
        for k, v in about.items()
    } == dict(
        quickdraw=(20, 800, 200, 600),
        digits=(10, 800, 200, 500),
        pneumonia=(2, 800, 200, 500),
        dsprites_loc=(16, 800, 200, 600))
    suite, few = str(CONFIGS / 'suite.json'), str(CONFIGS / 'suite_fewshot.json')
    assert main(['data', 'check', suite, '--root', str(folder / 'vtab'), '--task', 'digits', 'dsprites_loc']) == 0
    assert '2 of 2 tasks are in order' in capsys.readouterr().out
    # Both forms hold the same images with the same labels.
    for task in ('digits', 'pneumonia'):
        plain = VTAB1k(task, 'train800val200', suite=suite, data_root=str(folder / 'vtab'))
        zipped = Elevater(task, 'train', suite=few, data_root=str(folder / 'elevater'))
        for i in (0, 1, 799, 800, 999):
            a, b = plain.get_data_info(i), zipped.get_data_info(i)
            assert a['gt_label'] == b['gt_label'] == i % len(plain.CLASSES) and plain.CLASSES == zipped.CLASSES
            archive, member = b['img_path'].split('@')
            with open(a['img_path'], 'rb') as file:
                assert zipfile.ZipFile(archive).read(member) == file.read()
    pictures = {
        part: {
            Path(d['img_path']).read_bytes()
            for d in VTAB1k('pneumonia', part, suite=suite, data_root=str(folder / 'vtab'))
        }
        for part in ('train800val200', 'test')
    }
    assert len(pictures['test']) == 500 and not pictures['test'] & pictures['train800val200']
    # The label of a sprite is where it lies.
    from PIL import Image
    sprites = VTAB1k('dsprites_loc', 'test', suite=suite, data_root=str(folder / 'vtab'))
    for i in (0, 300, 599):
        pixels = np.asarray(Image.open(sprites.get_data_info(i)['img_path']))
        assert set(np.unique(pixels)) == {0, 255} and pixels[0].argmax() // 2 == sprites.get_data_info(i)['gt_label']
    files = {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
    (folder / 'about.json').write_text('{"recipe": 0}')  # of an older recipe: made again, byte for byte
    prepare.prepare('small-suite')
    assert files == {p: p.read_bytes() for p in folder.rglob('*') if p.is_file()}
