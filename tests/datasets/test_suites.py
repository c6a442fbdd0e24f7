# SPDX-License-Identifier: Apache-2.0
"""Tables and datasets of VTAB-1k, FGVC and ELEVATER."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from mmpetl.datasets import FGVC, Elevater, LoadImage, VTAB1k
from mmpetl.datasets.tables import SUITES, get_suite, get_task

sys.path.insert(0, str(Path(__file__).parents[1]))
import suite_data

# -- tables -----------------------------------------------------------------------------------------------------------

def test_tables_hold_44_tasks_in_published_numbers():
    assert {name: len(s.tasks) for name, s in SUITES.items()} == {'vtab': 19, 'fgvc': 5, 'elevater': 20}
    groups = [t.group for t in SUITES['vtab'].tasks.values()]
    assert [groups.count(g) for g in SUITES['vtab'].groups] == [7, 4, 8]
    # ELEVATER's classes sum to 1151 (mean 57.55), VTAB's heads average 38,045 parameters with 769 per class.
    assert sum(t.num_classes for t in SUITES['elevater'].tasks.values()) == 1151
    assert round(sum(769 * t.num_classes for t in SUITES['vtab'].tasks.values()) / 19) == 38045
    metrics = [t.metric for t in SUITES['elevater'].tasks.values()]
    assert {
        m: metrics.count(m)
        for m in set(metrics)
    } == {
        'accuracy': 14,
        'mean_per_class': 4,
        'roc_auc': 1,
        'map11': 1
    }
    assert [t.name for t in SUITES['elevater'].tasks.values() if t.multi_label] == ['voc-2007-classification']
    for suite in SUITES.values():
        for task in suite.tasks.values():
            for train, evaluated in suite.phases.values():
                assert {train, evaluated} - {'few', 'fewtrain', 'fewval'} <= set(task.splits), task.name


@pytest.mark.parametrize('call', [lambda: get_suite('vtb'), lambda: get_task('vtab', 'cifar100')])
def test_unknown_names_say_what_is_near(call):
    with pytest.raises(ValueError, match='did you mean'):
        call()


# -- VTAB-1k ----------------------------------------------------------------------------------------------------------

def test_vtab_text_lists(tmp_path):
    suite_data.write_vtab(tmp_path, 'eurosat', dict(train800=12, val200=4, test=6))
    for split, count in dict(train800=12, val200=4, train800val200=16, test=6).items():
        data = VTAB1k('eurosat', split, str(tmp_path))
        assert len(data) == count
    info = data.get_data_info(3)
    assert info['gt_label'] == 3 and Path(info['img_path']) == tmp_path / 'eurosat/images/test/000003.png'
    assert data.metainfo['classes'] == tuple('0123456789') and data.metainfo['num_classes'] == 10 and data.get_cat_ids(
        3) == [3]


def test_vtab_json_lists_with_and_without_the_images_folder(tmp_path):
    suite_data.write_vtab(tmp_path, 'kitti', dict(train800=800, val200=200, test=3), form='json')
    train, val = VTAB1k('kitti', 'train800', str(tmp_path)), VTAB1k('kitti', 'val200', str(tmp_path))
    whole = VTAB1k('kitti', 'train800val200', str(tmp_path))
    assert (len(train), len(val), len(whole)) == (800, 200, 1000)
    assert os.path.isfile(val.get_data_info(0)['img_path']) and 'val200' in val.get_data_info(0)['img_path']
    path = tmp_path / 'kitti/test.json'
    path.write_text(json.dumps([{f'images/{n}': v} for row in json.loads(path.read_text()) for n, v in row.items()]))
    assert os.path.isfile(VTAB1k('kitti', 'test', str(tmp_path)).get_data_info(2)['img_path'])


def test_vtab_does_not_cut_a_short_list(tmp_path):
    suite_data.write_vtab(tmp_path, 'kitti', dict(train800=8, val200=2, test=3), form='json')
    with pytest.raises(ValueError, match='10 entries, not 1000'):
        VTAB1k('kitti', 'train800', str(tmp_path))


@pytest.mark.parametrize('text, message', [
    ('images/a.png 4\n', r'label 4, but the task has classes 0\.\.3'),
    ('images/a.png\n', 'test.txt, line 1: no label'),
    ('images/a.png 1\nimages/b.png x\n', "line 2: label 'x' is not a whole number"),
    ('images/a.png -1\n', 'not a class id >= 0'),
    ('images/a.png 1,2\n', 'exactly one per image')])
def test_vtab_bad_lists_name_file_and_line(tmp_path, text, message):
    suite_data.put(str(tmp_path / 'kitti/test.txt'), text.encode())
    with pytest.raises(ValueError, match=message):
        VTAB1k('kitti', 'test', str(tmp_path))


def test_missing_list_and_unknown_split(tmp_path):
    with pytest.raises(FileNotFoundError, match='kitti/test.txt is missing'):
        VTAB1k('kitti', 'test', str(tmp_path))
    with pytest.raises(ValueError, match="no list 'train'; did you mean"):
        VTAB1k('kitti', 'train', str(tmp_path))
    with pytest.raises(ValueError, match="no task 'kiti'; did you mean 'kitti'"):
        VTAB1k('kiti', 'test', str(tmp_path))


def test_class_names_are_read_and_counted(tmp_path):
    suite_data.write_vtab(tmp_path, 'kitti', dict(test=4))
    names = tmp_path / 'kitti/classes.txt'
    names.write_text('near\nmiddle\nfar\nnone\n')
    assert VTAB1k('kitti', 'test', str(tmp_path)).CLASSES == ('near', 'middle', 'far', 'none')
    names.write_text('near\n')
    with pytest.raises(ValueError, match='names 1 classes'):
        VTAB1k('kitti', 'test', str(tmp_path))


# -- FGVC -------------------------------------------------------------------------------------------------------------

def test_fgvc_ids_are_contiguous_over_the_union_of_the_lists(tmp_path):
    suite_data.write_fgvc(tmp_path, 'OxfordFlowers', dict(train=1, val=1, test=1))
    # Drop a class from val: ranks within val alone would shift by one.
    path = tmp_path / 'OxfordFlowers/val.json'
    rows = json.loads(path.read_text())
    rows.pop('class_1/val_0.png')
    path.write_text(json.dumps(rows))
    train = FGVC('OxfordFlowers', 'train', str(tmp_path))
    val = FGVC('OxfordFlowers', 'val', str(tmp_path))
    assert sorted(train.get_gt_labels()) == list(range(102))
    assert sorted(val.get_gt_labels()) == list(range(1, 102))
    by_folder = {
        Path(train.get_data_info(i)['img_path']).parent.name: train.get_data_info(i)['gt_label']
        for i in range(len(train))
    }
    for i in range(len(val)):
        info = val.get_data_info(i)
        assert by_folder[Path(info['img_path']).parent.name] == info['gt_label']
    assert len(FGVC('OxfordFlowers', 'trainval', str(tmp_path))) == 102 + 101
    assert os.path.isfile(train.get_data_info(0)['img_path'])


def test_fgvc_under_the_names_of_the_official_archives(tmp_path):
    suite_data.write_fgvc(tmp_path, 'OxfordFlowers', dict(train=1, val=1, test=1))
    usual = FGVC('OxfordFlowers', 'train', data_root=str(tmp_path))
    for name in ('OxfordFlower', 'oxford_flowers'):
        next(tmp_path.iterdir()).rename(tmp_path / name)
        data = FGVC('OxfordFlowers', 'train', data_root=str(tmp_path))
        assert len(data) == len(usual) and name in data.get_data_info(0)['img_path']
    assert get_task('fgvc', 'CUB').locate('r') == 'r/CUB'
    (tmp_path / 'CUB_200_2011').mkdir()
    assert get_task('fgvc', 'CUB').locate(str(tmp_path)) == str(tmp_path / 'CUB_200_2011')


def test_fgvc_string_ids_and_wrong_number_of_classes(tmp_path):
    suite_data.write_fgvc(tmp_path, 'OxfordFlowers', dict(train=1, val=1, test=1))
    for part in ('train', 'val', 'test'):
        path = tmp_path / f'OxfordFlowers/{part}.json'
        path.write_text(json.dumps({n: str(v) for n, v in json.loads(path.read_text()).items()}))
    labels = FGVC('OxfordFlowers', 'test', str(tmp_path)).get_gt_labels()
    assert labels.tolist() == list(range(102))  # '10' sorts after '9', as numbers do
    suite_data.put(str(tmp_path / 'OxfordFlowers/test.json'), b'{"a.png": 999}')
    with pytest.raises(ValueError, match='103 classes together'):
        FGVC('OxfordFlowers', 'train', str(tmp_path))


# -- ELEVATER ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('task', ['eurosat_clip', 'kitti-distance'])  # text index, COCO index
@pytest.mark.parametrize('zipped', [True, False])
def test_elevater_reads_both_index_formats_from_zip_and_folder(tmp_path, task, zipped):
    suite_data.write_elevater(tmp_path, task, dict(train=3, test=2), zipped)
    classes = get_task('elevater', task).num_classes
    data = Elevater(task, 'test', data_root=str(tmp_path), pipeline=[LoadImage()])
    assert len(data) == 2 * classes
    for i in (0, len(data) - 1):
        item = data[i]
        want = suite_data.image_bytes(i % classes, i // classes, (30, 24))
        assert item['gt_label'] == i % classes
        np.testing.assert_array_equal(item['img'], suite_data_decode(want))


def suite_data_decode(data: bytes) -> np.ndarray:
    import io

    from PIL import Image
    return np.asarray(Image.open(io.BytesIO(data)))[..., ::-1]


def test_elevater_few_shot_lists(tmp_path):
    suite_data.write_elevater(tmp_path, 'eurosat_clip', dict(train=12, test=1))
    lists = {
        s: Elevater('eurosat_clip', s, shots=5, shot_seed=1, data_root=str(tmp_path))
        for s in ('few', 'fewtrain', 'fewval')
    }
    paths = {s: [d.get_data_info(i)['img_path'] for i in range(len(d))] for s, d in lists.items()}
    assert [len(paths[s]) for s in ('few', 'fewtrain', 'fewval')] == [50, 40, 10]
    assert sorted(lists['fewval'].get_gt_labels()) == list(range(10))
    assert sorted(paths['fewtrain'] + paths['fewval']) == sorted(paths['few']) and len(set(paths['few'])) == 50
    other = Elevater('eurosat_clip', 'few', shots=5, shot_seed=2, data_root=str(tmp_path))
    assert [other.get_data_info(i)['img_path'] for i in range(50)] != paths['few']
    assert len(Elevater('eurosat_clip', 'few', shots=-1, data_root=str(tmp_path))) == 120
    assert lists['few'].CLASSES[3] == 'class 3'
    with pytest.raises(ValueError, match='at least 2 images per class'):
        Elevater('eurosat_clip', 'fewtrain', shots=1, data_root=str(tmp_path))


def test_elevater_multi_label(tmp_path):
    suite_data.write_elevater(tmp_path, 'voc-2007-classification', dict(train=4, val=1, test=1))
    data = Elevater('voc-2007-classification', 'train', data_root=str(tmp_path))
    info = data.get_data_info(20 + 19)  # second round: two labels, the second wraps around
    assert info['gt_label'] == [19, 0] and data.get_cat_ids(39) == [19, 0]
    assert info['gt_score'].tolist() == [1.0] + [0.0] * 18 + [1.0]


def test_unreadable_image_is_named(tmp_path):
    suite_data.put(str(tmp_path / 'a.png'), b'not an image')
    with pytest.raises(ValueError, match='a.png cannot be decoded'):
        LoadImage()(dict(img_path=str(tmp_path / 'a.png')))
    suite_data.write_elevater(tmp_path, 'eurosat_clip', dict(test=1))
    archive = tmp_path / 'classification/eurosat_clip_20210930/test.zip'
    with pytest.raises(FileNotFoundError, match="has no member 'absent.png'"):
        LoadImage()(dict(img_path=f'{archive}@absent.png'))
