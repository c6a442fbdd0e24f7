# SPDX-License-Identifier: Apache-2.0
"""Arguments of ``mmpetl merge``."""

import argparse
from typing import Any

from ...training.flags import FORCE
from ...training.given import ConfigOptions
from ..numbers import positive
from . import has_config, later


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add them, also for ``tools/merge_adapter.py``."""
    parser.add_argument('config', help='config with which the adapter was trained')
    parser.add_argument('adapter', help='adapter file, or checkpoint of the training run')
    parser.add_argument('-o', '--out', required=True, help='*.pth or *.safetensors')
    parser.add_argument(
        '--base', default='', metavar='FILE', help="weight file of the base; default the config's init_cfg")
    parser.add_argument(
        '--backbone-only', action='store_true', help='write the backbone alone, without the prefix backbone.')
    parser.add_argument('--force', action='store_true', help=FORCE)
    parser.add_argument('--no-verify', action='store_true', help='do not compare the merged with the unmerged backbone')
    parser.add_argument(
        '--tolerance', type=positive,
        help='largest accepted difference, relative to the largest output (default 0.001)')
    parser.add_argument(
        '--cfg-options', '--set', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
        help='override entries of the config')
    return parser


def add_parser(subparsers: Any) -> None:
    """Add ``mmpetl merge``."""
    add_arguments(subparsers.add_parser('merge', help='merge an adapter into its base')).set_defaults(
        run=later('merge', has_config))
