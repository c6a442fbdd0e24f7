# SPDX-License-Identifier: Apache-2.0
"""Masks of segmentation are looked at before a run, and read as mmsegmentation reads them."""

import numpy as np
import pytest
from PIL import Image

from mmpetl.datasets.masks import look_at_masks, refuse

PICTURE = (24, 16)  # width, height


def sample(folder, mask, mode='L', name='a', **extra):
    picture, file = folder / f'{name}.jpg', folder / f'{name}.png'
    Image.new('RGB', PICTURE).save(picture)
    if isinstance(mask, bytes):
        file.write_bytes(mask)
    elif mask is not None:
        image = Image.fromarray(np.asarray(mask))
        if mode == 'P':
            image.putpalette(list(range(256)) * 3)
        image.save(file)
    return dict(img_path=str(picture), seg_map_path=str(file), **extra)


def ids(*values, dtype=np.uint8):
    """A mask that holds these values in stripes."""
    return np.resize(np.array(values, dtype), (PICTURE[1], PICTURE[0])).astype(dtype)


WRONG = {
    'missing': (None, r'a\.png does not exist \(the mask of .*a\.jpg\)'),
    'damaged': (b'no picture', r'a\.png cannot be read as a picture \(UnidentifiedImageError\)'),
    'colours': (np.zeros((16, 24, 3), np.uint8), r'a\.png has 3 channels \(mode RGB\)'),
    'beyond': (ids(0, 3, 4, 255), r'a\.png holds 3, 4, but classes are 0\.\.2, and 255 is left out'),
    'wide': (ids(0, 700, dtype=np.uint16), r'a\.png holds numbers up to 700'),
    'size': (np.zeros((24, 16), np.uint8), r'a\.png has 16 x 24 pixels, its picture .*a\.jpg 24 x 16'),
}


@pytest.mark.parametrize('kind', WRONG)
def test_what_is_wrong_is_named(kind, tmp_path):
    mask, said = WRONG[kind]
    found = look_at_masks([sample(tmp_path, mask)], 3)
    with pytest.raises(ValueError, match=rf'^x: 1 of 1 masks do not fit: .*{said}') as error:
        refuse(found, 1, 'x', 'abc', 3, 255)
    assert ('num_classes (3)' in str(error.value)) == (kind == 'beyond')


@pytest.mark.parametrize('mask, mode, extra', [
    (ids(0, 1, 2, 255), 'L', {}), (ids(0, 1, 2, 255), 'P', {}),
    (ids(0, 1, 2, 3, 255), 'L', dict(reduce_zero_label=True)),
    (ids(0, 1, 2, 3, 4), 'L', dict(label_map={0: 0, 1: 255, 2: 1, 3: 2, 4: 2})),
], ids=['grey', 'palette', 'zero left out', 'map'])
def test_good_masks_pass(mask, mode, extra, tmp_path):
    """And pixels are counted as mmsegmentation's reader gives them."""
    info = sample(tmp_path, mask, mode, **{'reduce_zero_label': False, **extra})
    found = look_at_masks([info], 3)
    assert refuse(found, 1, 'x', 'abc', 3, 255) == ''
    loading = pytest.importorskip('mmseg.datasets.transforms', reason='requirements/dense.txt is not installed')
    read = loading.LoadAnnotations()(dict(info, seg_fields=[]))['gt_seg_map']
    values, counts = np.unique(read, return_counts=True)
    assert {v: n for v, n in found.pixels.items() if n} == dict(zip(values.tolist(), counts.tolist()))


def test_a_photograph_on_its_side_has_an_upright_mask(tmp_path):
    info = sample(tmp_path, np.resize(np.arange(3, dtype=np.uint8), (24, 16)))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new('RGB', PICTURE).save(info['img_path'], exif=exif)
    assert look_at_masks([info], 3).problems == []


def test_classes_without_a_pixel_are_told():
    from collections import Counter

    from mmpetl.datasets.masks import Masks
    names = ['sheet', 'bird', 'bush']
    line = refuse(Masks(pixels=Counter({0: 6, 2: 3, 255: 1})), 4, 'x', names, 3, 255)
    assert line == 'x: no mask holds bird (1); they hold sheet (0), bush (2), and 255, which is left out, in 10 % of the pixels'
    with pytest.raises(ValueError, match=r'x: no mask holds bird \(1\), bush \(2\); they hold sheet \(0\), and 255.*24 %.*'
                       r'there is nothing to tell apart; a pixel of a mask holds the number of its class, 0\.\.2'):
        refuse(Masks(pixels=Counter({0: 76, 255: 24})), 4, 'x', names, 3, 255)


def test_many_wrong_masks_are_counted(tmp_path):
    found = look_at_masks([sample(tmp_path, ids(9), name=f'm{i}') for i in range(7)], 3)
    with pytest.raises(ValueError, match='7 of 7 masks do not fit: .*m0.png.*; and 3 more: mend'):
        refuse(found, 7, 'x', 'abc', 3, 255)
