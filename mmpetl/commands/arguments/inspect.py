# SPDX-License-Identifier: Apache-2.0
"""Arguments of ``mmpetl inspect``."""

from typing import Any

from . import has_config, later


def add_parser(subparsers: Any) -> None:
    """Add ``mmpetl inspect``."""
    parser = subparsers.add_parser('inspect', help='what a checkpoint or adapter file holds')
    parser.add_argument('file', help='checkpoint, adapter file or published weights')
    parser.add_argument('--config', default='', help='try the file on the backbone of this config')
    parser.add_argument('--json', action='store_true', help='machine-readable output')
    parser.set_defaults(run=later('inspect', has_config))
