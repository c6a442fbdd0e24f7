# SPDX-License-Identifier: Apache-2.0
"""Arguments of ``mmpetl data``."""

import argparse
from typing import Any

from ...names import folder
from ..numbers import positive, whole
from ..unreadable import add_option
from . import later

#: Data sets, kinds of files and decoders, as the tables of :mod:`mmpetl.datasets` name them.
SETS = ('vtab', 'fgvc', 'elevater', 'hmdb51', 'ucf101', 'ssv2', 'k400')
KINDS = ('picture', 'video')
DECODERS = ('pyav', 'opencv', 'decord')


def _add_make(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``mmpetl data make``."""
    parser.add_argument('source', metavar='FOLDER', help='folder of class folders, or of train/ (val/, test/) with '
                        'class folders, or a list (CSV, text)')
    parser.add_argument('--out', type=folder, default='', help='where lists and config go (default own_data/<name>)')
    parser.add_argument('--name', default='', help='name of the data set (default: that of the folder or list)')
    parser.add_argument('--base', default='', help='a file of configs/_base_/backbones (default dinov2-small for '
                        'pictures, videomae-small for videos)')
    parser.add_argument('--method', nargs='+', default=[], help='one or several methods, or linear, bitfit, full '
                        '(default LoRA)')
    parser.add_argument('--val', type=float, default=0.2, help='share of each class for validation (default 0.2)')
    parser.add_argument('--test', type=float, default=0.2, help='share of each class for testing (default 0.2)')
    parser.add_argument('--seed', type=whole(0), default=0, help='of the cut (default 0)')
    parser.add_argument('--epochs', type=whole(0), default=0, help='default: by the number of samples')
    parser.add_argument('--kind', default='', choices=['', *KINDS], help='where a folder holds pictures and videos')
    parser.add_argument('--classes', default='', metavar='FILE', help='class names, one a line')
    parser.add_argument('--root', type=folder, default='',
                        help='folder that the paths of a list start from (default: its own)')
    for key in ('path', 'label', 'group', 'split'):
        parser.add_argument(f'--{key}-column', default='', metavar='NAME', help='column of a list with a header')
    parser.add_argument('--bands', nargs='+', type=whole(1),
                        help='red, green and blue of pictures of several bands, from 1')
    add_option(parser)
    parser.add_argument('--overwrite', action='store_true', help='replace lists and config')
    parser.add_argument('--jobs', type=whole(1), default=4, help='threads that read (default 4)')


def _add_videos(parser: argparse.ArgumentParser) -> None:
    """Add what ``mmpetl data check`` needs for videos beside ``suite``, ``--root``, ``--no-decode``, ``--jobs`` and
    ``--json``."""
    group = parser.add_argument_group('videos')
    group.add_argument(
        '--decoder', choices=['auto', *DECODERS], default='auto', help='default: the one that training would use')
    group.add_argument('--timeout', type=positive, default=30., help='seconds that one video may take (default 30)')


def add_parser(subparsers: Any) -> None:
    """Add ``data`` with its actions ``make`` and ``check``."""
    parser = subparsers.add_parser(
        'data', help='make and check data sets', description='Data sets of your own and of benchmark suites.')
    actions = parser.add_subparsers(dest='action', metavar='ACTION', required=True)
    make = actions.add_parser(
        'make',
        help='lists, classes and a ready config from a folder or list of your own',
        description='Check pictures or videos in class folders or a list, cut them into training, validation and test, '
        'and write lists and a config that trains with one command.')
    _add_make(make)
    make.set_defaults(run=later('data_make'))
    check = actions.add_parser(
        'check',
        help='counts, missing and broken images, duplicates, checksums',
        description='Look at lists and files of a config, of a folder or list of your own, or of a benchmark suite: '
        'counts per list and class, sizes, missing and undecodable files, files that are in training and test, '
        'checksums of the lists, and a picture of samples after the pipeline.')
    check.add_argument('suite', metavar='CONFIG|FOLDER|SUITE', help='a config, a folder or list of your own, or one of '
                       + ', '.join(SETS))
    check.add_argument(
        '--root', type=folder, help="folder of the suite's data; default the recipes' own")
    check.add_argument('--samples', type=whole(1), default=24, help='samples in the picture (default 24)')
    check.add_argument('--sheet', metavar='PNG', help='where the picture goes (default work_dirs/data_check/)')
    check.add_argument('--task', nargs='+', default=[], help='only these tasks')
    check.add_argument('--no-decode', action='store_true', help='do not open the images')
    check.add_argument('--jobs', type=whole(1), default=4, help='threads that read images (default 4)')
    check.add_argument('--json', metavar='FILE', help='also write everything to this file')
    _add_videos(check)
    check.set_defaults(run=later('data_check'))
