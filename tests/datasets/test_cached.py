# SPDX-License-Identifier: Apache-2.0
"""The cache of decoded images."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmpretrain.registry import DATASETS as MMPRETRAIN
from torch.utils.data import DataLoader

from mmpetl.datasets import CachedDataset, VTAB1k

sys.path.insert(0, str(Path(__file__).parents[1]))
import suite_data

PIPELINE = [
    dict(type='mmpetl.LoadImage'),
    dict(type='mmpretrain.Resize', scale=(8, 8), backend='pillow', interpolation='bicubic'),
    dict(type='mmpretrain.RandomFlip', prob=0.5),
    dict(type='mmpretrain.PackInputs')
]


@pytest.fixture
def config(tmp_path):
    suite_data.write_vtab(tmp_path, 'kitti', dict(train800=9, val200=1, test=6))
    return dict(type='mmpetl.VTAB1k', task='kitti', split='train800', data_root=str(tmp_path), pipeline=PIPELINE)


def _equal(a, b):
    assert a['inputs'].dtype == b['inputs'].dtype == torch.uint8
    torch.testing.assert_close(a['inputs'], b['inputs'], rtol=0, atol=0)
    assert a['data_samples'].gt_label == b['data_samples'].gt_label
    for key in ('ori_shape', 'img_shape', 'sample_idx', 'img_path', 'flip'):
        assert a['data_samples'].metainfo.get(key) == b['data_samples'].metainfo.get(key), key


def test_cached_items_equal_uncached_ones_and_decode_once(config, monkeypatch):
    plain = MMPRETRAIN.build(config)
    cached = MMPRETRAIN.build(dict(type='mmpetl.CachedDataset', dataset=config))
    assert len(cached) == 9 and cached.metainfo == plain.metainfo and cached.get_cat_ids(1) == [1]
    for round_ in range(2):
        for i in range(9):
            np.random.seed(100 * round_ + i)
            want = plain[i]
            np.random.seed(100 * round_ + i)
            _equal(cached[i], want)
        # From the second round on no file is opened.
        monkeypatch.setattr('mmpetl.datasets.loading.read_bytes', None) if round_ == 1 else None
        monkeypatch.setattr(cached, '_fill', None)


def test_loader_workers_share_the_cache(config, monkeypatch):
    cached = MMPRETRAIN.build(dict(type='mmpetl.CachedDataset', dataset=config))
    loader = DataLoader(cached, batch_size=3, num_workers=2, collate_fn=pseudo_collate, multiprocessing_context='fork')
    assert sum(len(batch['inputs']) for batch in loader) == 9
    assert cached._images.filled.all()
    plain = VTAB1k(**{k: v for k, v in config.items() if k != 'type'})
    np.random.seed(0)
    want = plain[4]
    np.random.seed(0)
    _equal(cached[4], want)


def test_a_dataset_beyond_the_limit_is_read_without_cache(config):
    cached = MMPRETRAIN.build(dict(type='mmpetl.CachedDataset', dataset=config, max_gib=1e-9))
    assert cached._images is None and cached[0]['inputs'].shape == (3, 8, 8)


def test_pickled_copies_start_empty(config):
    cached = MMPRETRAIN.build(dict(type='mmpetl.CachedDataset', dataset=config))
    cached[0]
    copy = pickle.loads(pickle.dumps(cached))
    assert not copy._images.filled.any()
    assert copy[2]['inputs'].shape == (3, 8, 8) and copy._images.filled.sum() == 1


def test_pipelines_that_cannot_be_cached(config):
    first_random = dict(config, pipeline=PIPELINE[2:])
    with pytest.raises(ValueError, match='begins with RandomFlip'):
        CachedDataset(first_random)
    no_resize = dict(config, pipeline=[PIPELINE[0], PIPELINE[3]])
    cached = CachedDataset(no_resize)
    suite_data.put(cached.get_data_info(1)['img_path'], suite_data.image_bytes(0, 0, (5, 5)))
    with pytest.raises(ValueError, match='to one size'):
        cached[1]
