# SPDX-License-Identifier: Apache-2.0
"""Arguments of ``mmpetl plan``."""

from typing import Any

from ...training.given import ConfigOptions
from . import has_config, later


def add_parser(subparsers: Any) -> None:
    """Add ``mmpetl plan``."""
    parser = subparsers.add_parser('plan', help='parameters, compute and memory of a config before training')
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='one or several configs')
    parser.add_argument(
        '--input', nargs='+', type=int, metavar='N', help='size of one input, H W or T H W; default that of the config')
    parser.add_argument(
        '--cfg-options',
        '--set', nargs='+', action=ConfigOptions, metavar='KEY=VALUE', help='override entries of every config')
    parser.add_argument('--compare', action='store_true', help='one config with every method and memory setting')
    parser.add_argument('--methods', nargs='+', default=[], metavar='NAME', help='compare these methods only')
    parser.add_argument(
        '--budget', metavar='SIZE', help='memory of the card, for example 24GB; ranked by the largest batch')
    parser.add_argument('--json', action='store_true', help='machine-readable output')
    parser.set_defaults(run=later('plan', has_config))
