# SPDX-License-Identifier: Apache-2.0
"""VTAB-1k label rules on hand-made records, and the lists made from them."""

import numpy as np
import pytest

from mmpetl.datasets import VTAB1k, label_rules
from mmpetl.datasets.tables import VTAB


@pytest.mark.parametrize('rule, record, want', [
    ('clevr_count', dict(objects=[0] * 3), 0),
    ('clevr_count', dict(objects=[0] * 10), 7),
    ('clevr_distance', dict(objects=[dict(pixel_coords=(0, 0, 12.0)), dict(pixel_coords=(0, 0, 8.2))]), 1),
    # a threshold must lie below, not at, the distance
    ('clevr_distance', dict(objects=[dict(pixel_coords=(0, 0, 8.0))]), 0),
    ('clevr_distance', dict(objects=[dict(pixel_coords=(0, 0, 10.5))]), 5),
    ('kitti_distance', dict(objects=[]), 3),
    ('kitti_distance', dict(objects=[dict(type=3, location=(0, 0, 2.0))]), 3),   # a pedestrian is no vehicle
    ('kitti_distance', dict(objects=[dict(type=0, location=(0, 0, 8.0)), dict(type=2, location=(0, 0, 30.0))]), 0),
    ('kitti_distance', dict(objects=[dict(type=1, location=(0, 0, 20.0))]), 1),
    ('kitti_distance', dict(objects=[dict(type=2, location=(0, 0, 20.5))]), 2),
    ('dsprites_location', dict(label_x_position=31), 15),
    ('dsprites_orientation', dict(label_orientation=39), 15),
    ('dsprites_orientation', dict(label_orientation=7), 2),
    ('smallnorb_azimuth', dict(label_azimuth=17), 17),
    ('smallnorb_elevation', dict(label_elevation=8), 8),
    ('label', dict(label=np.int64(5)), 5)])
def test_rule(rule, record, want):
    assert label_rules.RULES[rule](record) == want


def test_every_class_is_reached_and_every_task_has_a_rule():
    assert {label_rules.dsprites_orientation(dict(label_orientation=i)) for i in range(40)} == set(range(16))
    assert {label_rules.dsprites_location(dict(label_x_position=i)) for i in range(32)} == set(range(16))
    assert {t.label_rule for t in VTAB.tasks.values()} == set(label_rules.RULES)
    with pytest.raises(ValueError, match='3 to 10 objects'):
        label_rules.clevr_count(dict(objects=[0] * 2))


@pytest.mark.parametrize('text, want', [
    ('train[:800]', ('train', 0, 800)), ('train[45000:45200]', ('train', 45000, 45200)), ('test', ('test', 0, 101)),
    ('test[50%:]', ('test', 50, 101)), ('train[49999:]', ('train', 49999, 50000))])
def test_slices(text, want):
    assert label_rules.slice_bounds(text, dict(train=50000, test=101)) == want


@pytest.mark.parametrize('text', ['train[60000:]', 'validation[:200]', 'train[:', 'train[::2]'])
def test_slices_that_do_not_fit(text):
    with pytest.raises(ValueError, match='slice'):
        label_rules.slice_bounds(text, dict(train=50000))


def test_lists_from_raw_records(tmp_path):
    azimuth = np.arange(24300) % 18
    records = dict(train=[dict(label_azimuth=a) for a in azimuth], test=[dict(label_azimuth=17 - a) for a in azimuth])
    counts = label_rules.write_lists('smallnorb_azi', records, str(tmp_path / 'smallnorb_azi'))
    assert counts == dict(train800=800, val200=200, train800val200=1000, test=12150)
    test = VTAB1k('smallnorb_azi', 'test', str(tmp_path))
    val = VTAB1k('smallnorb_azi', 'val200', str(tmp_path))
    assert len(test) == 12150 and test.get_data_info(0)['gt_label'] == 17 - 12150 % 18
    # The published slice takes validation from the raw test part.
    assert val.get_data_info(1)['gt_label'] == 16 and val.get_data_info(1)['img_path'].endswith(
        'images/val200/000001.png')


def test_published_slices_give_the_published_counts():
    raw = dict(
        cifar=dict(train=50000, test=10000),
        dsprites_loc=dict(train=737280),
        eurosat=dict(train=27000),
        resisc45=dict(train=31500),
        svhn=dict(train=73257, test=26032),
        caltech101=dict(train=3057, test=6084),
        oxford_iiit_pet=dict(train=3680, test=3669))
    for name, lengths in raw.items():
        task = VTAB.tasks[name]
        for part, count in (('train800', 800), ('val200', 200), ('test', task.splits['test'].count)):
            _, start, stop = label_rules.slice_bounds(task.slices[part], lengths)
            assert stop - start == count, (name, part)
