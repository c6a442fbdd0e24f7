# SPDX-License-Identifier: Apache-2.0
"""Lists and class folders in the forms that people and programs write."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from mmpetl.datasets import ListDataset
from mmpetl.datasets.folders import class_names, files_below, find_samples
from mmpetl.datasets.list_files import read_names, read_rows
from mmpetl.datasets.lists import read_coco

CLASSES = ('cat', 'dog', 'red fox')
WANT = [('a.png', 0), ('b c.png', 1), ('d,e.png', 2)]
LINES = ('a.png 0', 'b c.png 1', 'd,e.png 2')
TEXT = '\n'.join(LINES) + '\n'

#: name -> (bytes of the list, options): each reads as WANT
FORMS = {
    'plain': (TEXT.encode(), {}),
    'no newline at the end': ('\n'.join(LINES).encode(), {}),
    'CRLF': (TEXT.replace('\n', '\r\n').encode(), {}),
    'CR': (TEXT.replace('\n', '\r').encode(), {}),
    'byte order mark': (TEXT.encode('utf-8-sig'), {}),
    'byte order mark, CRLF': (TEXT.replace('\n', '\r\n').encode('utf-8-sig'), {}),
    'UTF-16': (TEXT.encode('utf-16'), {}),
    'UTF-16, big-endian': (b'\xfe\xff' + TEXT.encode('utf-16-be'), {}),
    'UTF-16 without mark': (TEXT.encode('utf-16-le'), {}),
    'UTF-16, big-endian, without mark': (TEXT.encode('utf-16-be'), {}),
    'UTF-16, CRLF': (TEXT.replace('\n', '\r\n').encode('utf-16'), {}),
    'UTF-32': (TEXT.encode('utf-32'), {}),
    'blank lines': (('\n\n' + TEXT.replace('\n', '\n  \n')).encode(), {}),
    'blanks around': (''.join(f'  {line}  \n' for line in LINES).encode(), {}),
    'several blanks': (TEXT.replace('.png ', '.png    ').encode(), {}),
    'tabs': (TEXT.replace('.png ', '.png\t').encode(), {}),
    'commas': (TEXT.replace('.png ', '.png,').encode(), {}),
    'commas and blanks': (TEXT.replace('.png ', '.png, ').encode(), {}),
    'semicolons': (TEXT.replace('.png ', '.png;').encode(), {}),
    'quoted CSV': (b'"a.png",0\n"b c.png",1\n"d,e.png",2\n', {}),
    'all quoted': (b'"a.png","0"\n"b c.png","1"\n"d,e.png","2"\n', {}),
    'quoted, semicolons': (b'"a.png";"0"\n"b c.png";"1"\n"d,e.png";"2"\n', {}),
    'quoted, blanks': (b'"a.png" 0\n"b c.png" 1\n"d,e.png" 2\n', {}),
    'header': (b'path,label\na.png,0\nb c.png,1\n"d,e.png",2\n', {}),
    'header, other names': (b'Filename,Class\na.png,0\nb c.png,1\n"d,e.png",2\n', {}),
    'header, label first': (b'label,image\n0,a.png\n1,b c.png\n2,"d,e.png"\n', {}),
    'header, more columns': (b'image,patient,label,age\na.png,7,0,30\nb c.png,8,1,\n"d,e.png",9,2,50\n', {}),
    'header of pandas with index': (b',path,label\n0,a.png,0\n1,b c.png,1\n2,"d,e.png",2\n', {}),
    'header of Excel': ('\r\n'.join(['path;label', 'a.png;0', 'b c.png;1', 'd,e.png;2']).encode('utf-8-sig'), {}),
    'header, tabs': (b'path\tlabel\na.png\t0\nb c.png\t1\nd,e.png\t2\n', {}),
    'header, UTF-16, tabs': ('path\tlabel\r\na.png\t0\r\nb c.png\t1\r\nd,e.png\t2\r\n'.encode('utf-16'), {}),
    'header and class names': (b'path,label\na.png,cat\nb c.png,dog\n"d,e.png",red fox\n', dict(classes=CLASSES)),
    'floats of pandas': (b'path,label\na.png,0.0\nb c.png,1.0\n"d,e.png",2.0\n', {}),
    'class names': (b'a.png,cat\nb c.png,dog\n"d,e.png",red fox\n', dict(classes=CLASSES)),
    'class names, tabs': (b'a.png\tcat\nb c.png\tdog\nd,e.png\tred fox\n', dict(classes=CLASSES)),
    'ids and class names mixed': (b'a.png 0\nb c.png dog\nd,e.png\tred fox\n', dict(classes=CLASSES)),
    'labels from 1': (b'a.png 1\nb c.png 2\nd,e.png 3\n', dict(first_label=1)),
    'labels from 1, classes': (b'a.png,1\nb c.png,2\n"d,e.png",3\n', dict(first_label=1, classes=CLASSES)),
    'leading zeros': (b'a.png 00\nb c.png 01\nd,e.png 02\n', {}),
    'the same line twice': ((TEXT + TEXT).encode(), {}),
}

#: the same without labels
UNLABELLED = {
    'plain': 'a.png\nb c.png\nd,e.png\n'.encode(),
    'quoted': b'"a.png"\n"b c.png"\n"d,e.png"\n',
    'header': b'path\na.png\nb c.png\nd,e.png\n',
    'header with id': b'id,path\n1,a.png\n2,b c.png\n3,"d,e.png"\n',
    'UTF-16, CRLF, blank lines': 'a.png\r\n\r\nb c.png\r\nd,e.png'.encode('utf-16'),
}

#: name -> (bytes of the list, options, line that is named, words of the message)
WRONG = {
    'no label': (b'a.png 0\nb.png\n', {}, 2, ('no label', 'path label')),
    'empty label': (b'path,label\na.png,0\nb.png,\n', {}, 3, ('label is empty', )),
    'NaN of pandas': (b'path,label\na.png,0\nb.png,nan\n', {}, 3, ("'nan'", )),
    'half a class': (b'a.png 0\nb.png 1.5\n', {}, 2, ("'1.5'", )),
    'negative': (b'a.png 0\nb.png -1\n', {}, 2, ('-1', '>= 0')),
    'outside the classes': (b'a.png 0\nb.png 3\n', dict(classes=CLASSES), 2, ('label 3', '0..2')),
    'from 1, not said': (b'a.png 1\nb.png 2\nc.png 3\n', dict(classes=CLASSES), 3, ('label 3', '0..2', 'first_label=1')),
    'from 0, said to be from 1': (b'a.png 1\nb.png 0\n', dict(first_label=1), 2, ('label 0', '>= 1')),
    'unknown class': (b'a.png cat\nb.png dgo\n', dict(classes=CLASSES), 2, ("'dgo'", "did you mean 'dog'")),
    'names without classes': (b'a.png cat\nb.png dog\n', {}, 1, ("'cat'", 'class file')),
    'two labels, commas': (b'a.png 0\nb.png 1,2\n', {}, 2, ('2 labels (1,2)', 'has one')),
    'three labels, CSV': (b'a.png,0\nb.png,0,1,2\n', {}, 2, ('3 labels (0,1,2)', 'has one')),
    'two labels, quoted': (b'a.png,0\nb.png,"0,1"\n', {}, 2, ('2 labels', )),
    'two labels for one image': (b'a.png 0\nb.png 1\na.png 1\n', {}, 3, ('label 1', 'label 0', 'line 1')),
    'a column too many': (b'path,label\na.png,0\nb.png,0,1\n', {}, 3, ('3 columns', '2')),
    'a column too few': (b'path,label\na.png,0\nb.png\n', {}, 3, ('1 columns', '2')),
    'Latin-1': ('a.png 0\nm\xe4use.png 1\n'.encode('latin-1'), {}, 2, ('0xe4', 'UTF-8')),
    'no path': (b'a.png 0\n,1\n', {}, 2, ('no path', )),
}


@pytest.mark.parametrize('name', FORMS)
def test_forms(name, tmp_path):
    data, options = FORMS[name]
    (tmp_path / 'list.csv').write_bytes(data)
    rows = read_rows(str(tmp_path / 'list.csv'), **options)
    assert [(row.name, row.label) for row in rows][:3] == WANT and len(rows) == (6 if 'twice' in name else 3)


@pytest.mark.parametrize('name', UNLABELLED)
def test_forms_without_labels(name, tmp_path):
    (tmp_path / 'list.txt').write_bytes(UNLABELLED[name])
    rows = read_rows(str(tmp_path / 'list.txt'), with_label=False)
    assert [row.name for row in rows] == [name for name, _ in WANT] and {row.label for row in rows} == {-1}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_lines_are_named(name, tmp_path):
    data, options, line, words = WRONG[name]
    path = tmp_path / 'list.csv'
    path.write_bytes(data)
    with pytest.raises(ValueError) as caught:
        read_rows(str(path), **options)
    text = str(caught.value)
    assert text.startswith(f'{path}, line {line}') and '\n' not in text and all(w in text for w in words), text


def test_enough_forms():
    assert len(FORMS) + len(UNLABELLED) + len(WRONG) >= 60


def test_other_columns_and_lines(tmp_path):
    (tmp_path / 'a.csv').write_text('\npath,patient,label\na.png,p 1,0\n\nb.png,p 2,1\n')
    rows = read_rows(str(tmp_path / 'a.csv'))
    assert [(row.line, row.more) for row in rows] == [(3, dict(patient='p 1')), (5, dict(patient='p 2'))]


@pytest.mark.parametrize('data, error', [(b'', 'lists no image'), (b'\n \n', 'lists no image'), (b'path,label\n', 'lists no image'),
                                         (b'\x89PNG\r\n\x1a\n\0\0\0\rIHDR', 'UTF|no text file|no label')])
def test_no_list(data, error, tmp_path):
    (tmp_path / 'a.txt').write_bytes(data)
    with pytest.raises(ValueError, match=error) as caught:
        read_rows(str(tmp_path / 'a.txt'))
    assert str(tmp_path / 'a.txt') in str(caught.value)


CLASS_FILES = {
    'plain': 'cat\ndog\nred fox\n'.encode(),
    'byte order mark': 'cat\ndog\nred fox\n'.encode('utf-8-sig'),
    'CRLF and blank lines': b'cat\r\n\r\ndog\r\n  \r\nred fox\r\n\r\n',
    'UTF-16': 'cat\ndog\nred fox'.encode('utf-16'),
    'CR': b'cat\rdog\rred fox\r',
}


@pytest.mark.parametrize('name', CLASS_FILES)
def test_class_files(name, tmp_path):
    (tmp_path / 'classes.txt').write_bytes(CLASS_FILES[name])
    assert read_names(str(tmp_path / 'classes.txt')) == CLASSES


def test_bad_class_files(tmp_path):
    path = tmp_path / 'classes.txt'
    for data, words in ((b'', 'names no class'), (b'cat\ndog\ncat\n', "line 3: the class 'cat' is already in line 1")):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f'{re.escape(str(path))}.*{words}'):
            read_names(str(path))


@pytest.fixture
def folders(tmp_path):
    """Class folders as they lie on people's disks; test/ lacks a class."""
    for split, names in (('train', CLASSES), ('test', ('cat', 'red fox'))):
        for c, name in enumerate(names):
            place = tmp_path / split / name / 'deeper'
            place.mkdir(parents=True)
            for i in range(2):
                Image.fromarray(np.full((4, 4), 40 * c, np.uint8)).save((place if i else place.parent) / f'{i}.png')
    checkpoints = tmp_path / 'train' / '.ipynb_checkpoints'
    for hidden in (checkpoints, tmp_path / 'train/cat/.ipynb_checkpoints', tmp_path / 'train' / '__MACOSX'):
        hidden.mkdir()
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(hidden / '0-checkpoint.png')
    (tmp_path / 'train/dog/._0.png').write_bytes(b'')
    (tmp_path / 'train/dog/Thumbs.db').write_bytes(b'')
    (tmp_path / 'train/notes.txt').write_text('not a class')
    return tmp_path


def _labels(root, prefix, **more):
    data = ListDataset(data_root=str(root), data_prefix=prefix, pipeline=[], **more)
    names = [os.path.relpath(data.get_data_info(i)['img_path'], root / prefix) for i in range(len(data))]
    return data.CLASSES, list(zip(names, data.get_gt_labels().tolist()))


def test_class_folders(folders):
    classes, found = _labels(folders, 'train')
    assert classes == CLASSES
    assert found == [(f'{n}/{f}', c) for c, n in enumerate(CLASSES) for f in ('0.png', 'deeper/1.png')]
    # the class that the test folder lacks keeps its number
    assert _labels(folders, 'test') == (CLASSES, [(f'{n}/{f}', c) for c, n in ((0, 'cat'), (2, 'red fox'))
                                                  for f in ('0.png', 'deeper/1.png')])
    # any folder, given the classes of another, of a file, of the config
    (folders / 'test').rename(folders / 'holdout')
    (folders / 'classes.txt').write_bytes('\r\n'.join(CLASSES).encode('utf-8-sig'))
    for given in ('train', 'classes.txt', list(CLASSES)):
        assert [label for _, label in _labels(folders, 'holdout', classes=given)[1]] == [0, 0, 2, 2]
    assert class_names(str(folders / 'holdout')) == ('cat', 'red fox')


@pytest.fixture
def said(monkeypatch):
    lines = []
    monkeypatch.setattr('mmpetl.datasets.list_dataset.print_log', lambda text, **_: lines.append(text))
    return lines


def test_empty_class_folder_is_named(folders, said):
    (folders / 'train' / 'wolf').mkdir()
    classes, found = _labels(folders, 'train')
    assert classes == (*CLASSES, 'wolf') and len(found) == 6
    assert said == [f'{folders}/train: no image of 1 of 4 classes: wolf']


def test_wrong_folders(folders):
    for prefix, more, error, words in [
        ('train', dict(classes=['cat', 'dog']), ValueError, ('red fox', 'none of the 2 classes')),
        ('train/cat/deeper', {}, ValueError, ('no class folders', 'ann_file')),
        ('nowhere', {}, FileNotFoundError, ('nowhere', 'does not exist')),
        ('train', dict(extensions=['.mp4']), ValueError, ('no file', '.mp4')),
        ('train', dict(classes='names.txt'), FileNotFoundError, ('names.txt', 'does not exist')),
        ('train', dict(first_label=2), ValueError, ('first_label=2', )),
    ]:
        with pytest.raises(error) as caught:
            _labels(folders, prefix, **more)
        assert all(word in str(caught.value) for word in words) and '\n' not in str(caught.value)
    with pytest.raises(ValueError, match='ann_file'):
        ListDataset()
    assert list(files_below(str(folders / 'train/cat'))) == ['0.png', 'deeper/1.png']
    assert find_samples(str(folders / 'test'), CLASSES)['dog'] == []


def test_lists_written_on_windows(folders):
    lines = ['train\\cat\\0.png;cat', 'train\\red fox\\0.png;red fox']
    (folders / 'list.csv').write_bytes('\r\n'.join(['path;label', *lines]).encode('utf-16'))
    data = ListDataset('list.csv', str(folders), classes='train', pipeline=[dict(type='mmpetl.LoadImage')])
    assert data.get_gt_labels().tolist() == [0, 2] and data[1]['img'].shape == (4, 4, 3)


def test_without_labels(folders, said):
    (folders / 'list.txt').write_text('cat/0.png\nred fox/0.png\n')
    for options in (dict(ann_file='list.txt'), {}):
        data = ListDataset(data_root=str(folders), data_prefix='test', with_label=False, pipeline=[], **options)
        assert 'gt_label' not in data.get_data_info(0) and len(data) == (2 if options else 4)
    (folders / 'list.txt').write_text('cat/0.png 1\nred fox/0.png 2\n')
    ListDataset('list.txt', str(folders), 'test', pipeline=[])
    assert len(said) == 1 and f'{folders}/list.txt' in said[0] and 'first_label=1' in said[0]


@pytest.mark.parametrize('change, words', [
    (dict(images=[3]), 'an entry is no JSON object'), (dict(categories=[{'id': 1}, {'id': 'b'}]), 'ids are of several types'),
    (dict(images=[{'id': 1}]), "lacks the key 'file_name'"), (dict(annotations=None), "the list 'annotations' is missing"),
    (dict(annotations=[dict(image_id=9, category_id=1)]), 'annotation 0: unknown image 9'),
])
def test_damaged_coco_files(tmp_path, change, words):
    whole = dict(images=[dict(id=1, file_name='a.png', zip_file='z.zip')], categories=[dict(id=1, name='cat')],
                 annotations=[dict(image_id=1, category_id=1)])
    (tmp_path / 'l.json').write_text(json.dumps(whole))
    assert read_coco(str(tmp_path / 'l.json')) == ([('z.zip@a.png', [0])], ['cat'])
    (tmp_path / 'l.json').write_text(json.dumps({**whole, **change}))
    with pytest.raises(ValueError, match=words) as caught:
        read_coco(str(tmp_path / 'l.json'))
    assert 'l.json' in str(caught.value) and '\n' not in str(caught.value)
