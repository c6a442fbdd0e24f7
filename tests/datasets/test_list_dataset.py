# SPDX-License-Identifier: Apache-2.0
"""List-file images: what upstream reads is read, and each mistake is one line that names the file."""

import cv2
import numpy as np
import pytest
from mmpretrain.datasets import CustomDataset

import mmpetl  # noqa: F401
from mmpetl.datasets import ListDataset
from mmpetl.registry import DATASETS

LOAD = [dict(type='mmpetl.LoadImage', imdecode_backend='cv2'), dict(type='mmpretrain.PackInputs')]


@pytest.fixture
def root(tmp_path):
    (tmp_path / 'images' / 'big cat').mkdir(parents=True)
    for i in range(3):
        cv2.imwrite(str(tmp_path / 'images' / 'big cat' / f'{i}.png'), np.full((5, 6), 40 * i, np.uint8))
    (tmp_path / 'train.txt').write_text('images/big cat/0.png 0\n\nimages/big cat/1.png 1\nimages/big cat/2.png 1\n')
    (tmp_path / 'classes.txt').write_text('cat\ndog\n')
    return tmp_path


def _build(root, **kwargs):
    return ListDataset(**{
        **dict(ann_file='train.txt', data_root=str(root), classes='classes.txt', pipeline=LOAD),
        **kwargs
    })


def test_reads_what_upstream_reads(root):
    ours = _build(root)
    assert ours.CLASSES == ('cat', 'dog') and ours.get_gt_labels().tolist() == [0, 1, 1]
    # upstream stumbles over empty lines
    (root / 'plain.txt').write_text((root / 'train.txt').read_text().replace('\n\n', '\n'))
    upstream = CustomDataset(data_root=str(root), ann_file='plain.txt', pipeline=LOAD)
    for i in range(3):
        a, b = ours[i], upstream[i]
        assert a['inputs'].equal(b['inputs']) and a['inputs'].shape == (3, 5, 6)
        assert a['data_samples'].gt_label.item() == b['data_samples'].gt_label.item()
        assert a['data_samples'].img_path == b['data_samples'].img_path


def test_registered_and_home_folder(root, monkeypatch):
    monkeypatch.setenv('HOME', str(root.parent))
    built = DATASETS.build(
        dict(type='ListDataset', ann_file='train.txt', data_root=f'~/{root.name}', classes=['a', 'b'], pipeline=LOAD))
    assert len(built) == 3 and built[1]['inputs'].shape == (3, 5, 6)
    assert len(_build(root, classes=None)) == 3
    assert len(_build(root, indices=2)) == 2


def _refused(root, error, *words, **kwargs):
    with pytest.raises(error) as caught:
        _build(root, **kwargs)
    text = str(caught.value)
    assert '\n' not in text and all(word in text for word in words), text


def test_missing_files(root):
    _refused(root / 'nowhere', FileNotFoundError, str(root / 'nowhere'), 'data_root')
    _refused(root, FileNotFoundError, str(root / 'val.txt'), ann_file='val.txt')
    _refused(root, FileNotFoundError, str(root / 'names.txt'), classes='names.txt')
    _refused(
        root,
        FileNotFoundError,
        str(root / 'pictures' / 'images' / 'big cat' / '0.png'),
        'data_prefix',
        data_prefix='pictures')


@pytest.mark.parametrize('line, words', [('images/big cat/0.png 2', ('label 2', '0..1')),
                                         ('images/big cat/0.png -1', ('-1', )),
                                         ('images/big cat/0.png dgo', ("'dgo'", "did you mean 'dog'")), ('images/big', ('images/big', ))])
def test_bad_lines(root, line, words):
    (root / 'train.txt').write_text(f'images/big cat/1.png 1\n{line}\n')
    _refused(root, ValueError, str(root / 'train.txt'), *words)


def test_empty_list(root):
    (root / 'train.txt').write_text('\n')
    _refused(root, ValueError, str(root / 'train.txt'), 'no image')


@pytest.mark.parametrize('content', [b'', b'not an image', None])
def test_unreadable_image_is_named(root, content):
    path = root / 'images' / 'big cat' / '1.png'
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match='big cat/1.png'):
        _build(root)[1]
