# SPDX-License-Identifier: Apache-2.0
"""VTAB-1k: 19 tasks in three groups, 1,000 training images each (800 to train while searching, 200 to validate).

Two published list formats are read: ``<split>.txt`` with lines ``images/<split>/000000.jpg label`` and
``<split>.json`` with a list of one-entry dicts whose names are relative to ``images/``.

Sources: Zhai et al., arXiv 1910.04867; slices, label rules and test counts as in VPT (arXiv 2203.12119, Table 8).
"""

from typing import Dict, Tuple

from .spec import IMAGENET_NORM, Split, Suite, Task

NATURAL, SPECIALIZED, STRUCTURED = 'Natural', 'Specialized', 'Structured'

# name, group, source, classes, train800, val200, test, images in test, label rule
_ROWS: Tuple[Tuple[str, str, str, int, str, str, str, int, str], ...] = (
    ('cifar', NATURAL, 'cifar100:3', 100, 'train[:800]', 'train[45000:45200]', 'test', 10000, 'label'),
    ('caltech101', NATURAL, 'caltech101:3', 102, 'train[:800]', 'train[2753:2953]', 'test', 6084, 'label'),
    ('dtd', NATURAL, 'dtd:3', 47, 'train[:800]', 'validation[:200]', 'test', 1880, 'label'),
    ('oxford_flowers102', NATURAL, 'oxford_flowers102:2', 102, 'train[:800]', 'validation[:200]', 'test', 6149,
     'label'),
    ('oxford_iiit_pet', NATURAL, 'oxford_iiit_pet:3', 37, 'train[:800]', 'train[2944:3144]', 'test', 3669, 'label'),
    ('svhn', NATURAL, 'svhn_cropped:3', 10, 'train[:800]', 'train[65931:66131]', 'test', 26032, 'label'),
    ('sun397', NATURAL, 'sun397/tfds:4', 397, 'train[:800]', 'validation[:200]', 'test', 21750, 'label'),
    ('patch_camelyon', SPECIALIZED, 'patch_camelyon:2', 2, 'train[:800]', 'validation[:200]', 'test', 32768, 'label'),
    ('eurosat', SPECIALIZED, 'eurosat/rgb:2', 10, 'train[:800]', 'train[16200:16400]', 'train[21600:]', 5400, 'label'),
    ('resisc45', SPECIALIZED, 'resisc45:3', 45, 'train[:800]', 'train[18900:19100]', 'train[25200:]', 6300, 'label'),
    ('diabetic_retinopathy', SPECIALIZED, 'diabetic_retinopathy_detection/btgraham-300:3', 5, 'train[:800]',
     'validation[:200]', 'test', 42670, 'label'),
    ('clevr_count', STRUCTURED, 'clevr:3', 8, 'train[:800]', 'train[63000:63200]', 'validation', 15000, 'clevr_count'),
    ('clevr_dist', STRUCTURED, 'clevr:3', 6, 'train[:800]', 'train[63000:63200]', 'validation', 15000,
     'clevr_distance'),
    ('dmlab', STRUCTURED, 'dmlab:2.0.1', 6, 'train[:800]', 'validation[:200]', 'test', 22735, 'label'),
    ('kitti', STRUCTURED, 'kitti:3.2.0', 4, 'train[:800]', 'validation[:200]', 'test', 711, 'kitti_distance'),
    ('dsprites_loc', STRUCTURED, 'dsprites:2', 16, 'train[:800]', 'train[589824:590024]', 'train[663552:]', 73728,
     'dsprites_location'),
    ('dsprites_ori', STRUCTURED, 'dsprites:2', 16, 'train[:800]', 'train[589824:590024]', 'train[663552:]', 73728,
     'dsprites_orientation'),
    ('smallnorb_azi', STRUCTURED, 'smallnorb:2', 18, 'train[:800]', 'test[:200]', 'test[50%:]', 12150,
     'smallnorb_azimuth'),
    ('smallnorb_ele', STRUCTURED, 'smallnorb:2', 9, 'train[:800]', 'test[:200]', 'test[50%:]', 12150,
     'smallnorb_elevation'),
)


def _tasks() -> Dict[str, Task]:
    tasks = {}
    for name, group, source, classes, train, val, test, count, rule in _ROWS:
        counts = {'train800': 800, 'val200': 200, 'train800val200': 1000, 'test': count}
        tasks[name] = Task(
            suite='vtab', name=name, num_classes=classes, group=group, source=source, label_rule=rule,
            splits={s: Split((f'{s}.txt', f'{s}.json'), n) for s, n in counts.items()},
            slices={'train800': train, 'val200': val, 'test': test}, classes_file='classes.txt')
    return tasks


VTAB = Suite(
    name='vtab',
    form='vtab',
    title='VTAB-1k',
    tasks=_tasks(),
    dataset='mmpetl.VTAB1k',
    norm=IMAGENET_NORM,
    root='data/vtab-1k',
    phases={
        'search': ('train800', 'val200'),
        'final': ('train800val200', 'test')
    },
    groups=(NATURAL, SPECIALIZED, STRUCTURED),
    hint='unpack the plain image release of VTAB-1k so that <root>/cifar/train800.txt and <root>/cifar/images/ exist')
