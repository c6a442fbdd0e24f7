# SPDX-License-Identifier: Apache-2.0
"""Convert a published weight file into one with OpenMMLab key names: tools/convert_weights.py and mmpetl convert."""

import argparse
import os
from collections.abc import Sequence
from typing import Any

from ..console import VERBOSE
from ..weights import WeightFileError, convert
from ..weights.convert_file import SUFFIXES, natural_arch, read_source, write_converted
from .arguments.convert import add_arguments


def config_target(path: str) -> tuple[str, dict[str, tuple[int, ...]], tuple[int, ...]]:
    """Architecture, key shapes and patch grid of the backbone in a config.

    Raises:
        ValueError: The config's backbone is none of mmpetl's.
    """
    from mmengine.registry import init_default_scope

    from ..backbones.family import ARCH_OF_TYPE, family_of
    from ..registry import MODELS
    from ..training.config import load_config
    from ..weights.archs import ARCHS
    config = load_config(path)
    if not isinstance((config.get('model') or {}).get('backbone'), dict):
        raise ValueError(f'{path}: the config has no model with a backbone: give one that has')
    init_default_scope(config.get('default_scope', 'mmpretrain'))
    settings = {key: value for key, value in config.model.backbone.items() if key not in ('init_cfg', 'petl', 'tune')}
    kind = settings['type']
    if not str(kind).startswith('mmpetl.'):
        raise ValueError(f'{path}: the backbone is {kind!r}, not one of mmpetl: give a config whose backbone is '
                         f'mmpetl.{kind}')
    backbone: Any = MODELS.build(settings)
    shapes = {key: tuple(value.shape) for key, value in backbone.state_dict().items() if not key.startswith('petl.')}
    family = family_of(backbone)[1]
    if family.arch(backbone) not in ARCHS:
        known = ', '.join(t for t, arch in ARCH_OF_TYPE.items() if arch in ARCHS)
        raise ValueError(f'{path}: {kind} takes the files of its own library as they are, none is converted for it as '
                         f'for {known}: name the file in the config')
    return family.arch(backbone), shapes, tuple(family.specs(backbone)[0].grid)


def run(args: argparse.Namespace) -> None:
    """Convert ``args.src`` to ``args.dst`` and print the match report.

    Raises:
        FileNotFoundError: No such source.
        ValueError: What does not fit, in one line; nothing is written.
    """
    if not args.dst.endswith(SUFFIXES):
        raise WeightFileError(args.dst, 'unknown output format',
                              f'name it {" or ".join("*" + suffix for suffix in SUFFIXES)}')
    if os.path.exists(args.dst) and os.path.exists(args.src) and os.path.samefile(args.src, args.dst):
        raise WeightFileError(args.dst, 'is the source itself', 'name another output')
    state = read_source(args.src)
    arch, shapes, grid = args.arch, None, None
    if args.config:
        arch, shapes, grid = config_target(args.config)
        if args.arch and args.arch != arch:
            raise ValueError(f'{args.config}: its backbone is {arch!r}, --arch says {args.arch!r}: leave --arch out')
    try:
        converted, report = convert(state, shapes, arch or natural_arch(state, args.as_name), args.as_name, grid)
    except ValueError as error:
        raise ValueError(str(error) if args.src in str(error) else f'{args.src}: {error}') from error
    write_converted(args.dst, converted, report, args.src, args.head)
    print(report)
    print(f'wrote {args.dst}: {len(converted)} tensors, {sum(t.numel() for t in converted.values()):,} numbers')


def main(argv: Sequence[str]) -> None:
    """The command line of ``tools/convert_weights.py``."""
    parser = argparse.ArgumentParser(prog='tools/convert_weights.py', description=__doc__)
    parser.add_argument('--verbose', action='store_true', help=VERBOSE)
    parser.add_argument('--debug', action='store_true', help='show tracebacks')
    run(add_arguments(parser).parse_args(argv))
