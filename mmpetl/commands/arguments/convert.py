# SPDX-License-Identifier: Apache-2.0
"""Arguments of ``mmpetl convert``."""

import argparse
from typing import Any

from . import has_config, later

#: Architectures and formats, as :mod:`mmpetl.weights.archs` knows them.
ARCHS = ('clip', 'swin', 'video_swin', 'videomae', 'vit')
FORMATS = ('jax-vit', 'dinov2-registers', 'hf-dinov2-registers', 'timm-vit', 'hf-vit', 'mmpretrain-vit', 'openai-clip',
           'hf-clip', 'videomae', 'hf-videomae', 'mmaction-videomae', 'timm-swin', 'swin', 'hf-swin', 'mmpretrain-swin',
           'video-swin')
#: Other names of formats.
ALIASES = {'npz': 'jax-vit', 'mae': 'timm-vit', 'mocov3': 'timm-vit', 'deit': 'timm-vit', 'dinov2': 'timm-vit',
           'hf-dinov2': 'hf-vit', 'hf-mae': 'hf-vit', 'open-clip': 'openai-clip', 'swin-22k': 'swin',
           'mmaction-video-swin': 'video-swin', 'v-petl': 'video-swin'}


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add them, also for ``tools/convert_weights.py``."""
    also = ', '.join(f'{alias} ({name})' for alias, name in ALIASES.items())
    parser.epilog = f'formats: {", ".join(FORMATS)}; also known as: {also}'
    parser.add_argument('src', help='weight file: torch, TorchScript, safetensors, npz or onnx')
    parser.add_argument('dst', help='*.pth or *.safetensors')
    parser.add_argument('--as', dest='as_name', metavar='NAME', help='format of SRC; found out by default')
    parser.add_argument(
        '--arch', choices=ARCHS, help='architecture of DST; by default the one that SRC is made for')
    parser.add_argument(
        '--config', help='config whose backbone gives key names and shapes: to resize tables or to inflate')
    parser.add_argument(
        '--head', metavar='PREFIX', help="also write SRC's classifier, as PREFIX.weight and PREFIX.bias")
    return parser


def add_parser(subparsers: Any) -> None:
    """Add ``mmpetl convert``."""
    parser = subparsers.add_parser('convert', help='published weights to OpenMMLab key names')
    add_arguments(parser).set_defaults(run=later('convert', has_config))
