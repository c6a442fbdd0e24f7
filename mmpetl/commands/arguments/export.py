# SPDX-License-Identifier: Apache-2.0
"""Arguments of ``mmpetl export``."""

from typing import Any

from ...training.flags import FORCE
from ...training.given import ConfigOptions
from . import has_config, later

#: What --to takes.
TARGETS = ('onnx', 'safetensors', 'timm', 'hf', 'openai', 'original', 'peft')


def add_parser(subparsers: Any) -> None:
    """Add ``mmpetl export``."""
    parser = subparsers.add_parser('export', help='a model for other runtimes and libraries')
    parser.add_argument('config', help='config with which the adapter was trained')
    parser.add_argument('adapter', help='adapter file, or checkpoint of the training run')
    parser.add_argument('-o', '--out', required=True, help='file; a folder for hf and peft')
    parser.add_argument('--to', choices=TARGETS, help='default from the suffix of --out: onnx or safetensors')
    parser.add_argument(
        '--library',
        help='library of the model that opens it, for peft: timm (default; of a base of transformers hf), hf, hf4, '
        'mmpretrain, mmaction2, original')
    parser.add_argument(
        '--prefix', default='', help="what stands before the block names in the base model, for peft, such as 'vit.'")
    parser.add_argument(
        '--base', default='', metavar='FILE', help="weight file of the base; default the config's init_cfg")
    parser.add_argument('--force', action='store_true', help=FORCE)
    parser.add_argument('--backbone-only', action='store_true', help='leave out neck and head')
    parser.add_argument(
        '--cfg-options', '--set', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
        help='override entries of the config')
    parser.set_defaults(run=later('export', has_config))
