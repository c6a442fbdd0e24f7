# SPDX-License-Identifier: Apache-2.0
"""ELEVATER image classification: 20 data sets, few-shot subsets, four metrics.

Source: Li et al., arXiv 2204.08790 and the index files that its toolkit downloads. The official validation lists are
    not used by the protocol: validation is cut out of the training images (see
    :func:`mmpetl.datasets.fewshot.validation_positions`).
"""

from typing import Dict, Optional, Tuple

from .spec import CLIP_NORM, Split, Suite, Task

# name, folder, classes, (train, val, test) counts, (train, val, test) index files, file of class names, metric, prompts
_Row = Tuple[str, str, int, Tuple[int, Optional[int], int], Tuple[str, str, str], Optional[str], str, int]
_TXT = ('train.txt', 'val.txt', 'test.txt')
_VALID = ('train.txt', 'valid.txt', 'test.txt')
_ROWS: Tuple[_Row, ...] = (
    ('caltech-101', 'caltech_101_20211007', 102, (3060, None, 6084), _TXT, 'labels.txt', 'mean_per_class', 34),
    ('cifar-10', 'cifar_10_20211007', 10, (50000, None, 10000), _TXT, 'labels.txt', 'accuracy', 18),
    ('cifar-100', 'cifar100_20200721', 100, (50000, None, 10000), ('train_images.txt', '', 'test_images.txt'),
     'labels.txt', 'accuracy', 18),
    ('country211', 'country211_20210924', 211, (31650, 10550, 21100), _VALID, 'labels.txt', 'accuracy', 5),
    ('dtd', 'dtd_20211007', 47, (1880, 1880, 1880), _TXT, 'labels.txt', 'accuracy', 8),
    ('eurosat_clip', 'eurosat_clip_20210930', 10, (5000, 5000, 5000), _TXT, 'labels.txt', 'accuracy', 3),
    ('fer-2013', 'fer_2013_20211008', 7, (28709, 3589, 3589), _TXT, 'labels.txt', 'accuracy', 6),
    ('fgvc-aircraft-2013b-variants102', 'fgvc_aircraft_2013b_variants102_20211007', 100, (3334, 3333, 3333), _TXT,
     'labels.txt', 'mean_per_class', 2),
    ('food-101', 'food_101_20211007', 101, (75750, None, 25250), _TXT, 'labels.txt', 'accuracy', 1),
    ('gtsrb', 'gtsrb_20210923', 43, (26640, 12569, 12630), _TXT, 'labelmap.txt', 'accuracy', 3),
    ('hateful-memes', 'hateful_memes_20211014', 2, (8500, None, 500), ('train_meta.json', '', 'test_meta.json'), None,
     'roc_auc', 1),
    ('kitti-distance', 'kitti_distance_20210923', 4, (6347, 423, 711), ('train_meta.json', 'validation_meta.json',
                                                                        'test_meta.json'), None, 'accuracy', 1),
    ('mnist', 'mnist_20211008', 10, (60000, None, 10000), _TXT, 'labels.txt', 'accuracy', 1),
    ('oxford-flower-102', 'oxford_flower_102_20211007', 102, (1020, 1020, 6149), _TXT, 'labels.txt', 'mean_per_class',
     1),
    ('oxford-iiit-pets', 'oxford_iiit_pets_20211007', 37, (3680, None, 3669), _TXT, 'labels.txt', 'mean_per_class', 1),
    ('patch-camelyon', 'patch_camelyon_20211007', 2, (262144, 32768, 32768), _TXT, 'labels.txt', 'accuracy', 1),
    ('rendered-sst2', 'rendered_sst2_20210924', 2, (6920, 827, 1821), _VALID, 'labels.txt', 'accuracy', 1),
    ('resisc45_clip', 'resisc45_clip_20210924', 45, (3150, 3150, 25200), ('train.json', 'val.json', 'test.json'), None,
     'accuracy', 18),
    ('stanford-cars', 'stanford_cars_20211007', 196, (8144, None, 8041), _TXT, 'labels.txt', 'accuracy', 8),
    ('voc-2007-classification', 'voc2007_20211007', 20, (2501, 2510, 4952), ('train_ic.txt', 'val_ic.txt',
                                                                             'test_ic.txt'), 'labels.txt', 'map11', 1),
)


def _tasks() -> Dict[str, Task]:
    tasks = {}
    for name, folder, classes, counts, files, names, metric, prompts in _ROWS:
        splits = {s: Split((f,), n) for s, f, n in zip(('train', 'val', 'test'), files, counts) if n is not None}
        tasks[name] = Task(
            suite='elevater',
            name=name,
            num_classes=classes,
            splits=splits,
            metric=metric,
            prompts=prompts,
            classes_file=names,
            folder=f'classification/{folder}',
            resize='squash' if name == 'kitti-distance' else 'crop',
            multi_label=name == 'voc-2007-classification')
    return tasks


ELEVATER = Suite(
    name='elevater',
    form='elevater',
    title='ELEVATER',
    tasks=_tasks(),
    dataset='mmpetl.Elevater',
    norm=CLIP_NORM,
    root='data/elevater',
    phases={
        'search': ('fewtrain', 'fewval'),
        'final': ('few', 'test')
    },
    hint=
    'unpack the ELEVATER downloads so that <root>/classification/mnist_20211008/train.txt exists; images may stay in '
    'their zip files'
)
