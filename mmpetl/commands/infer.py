# SPDX-License-Identifier: Apache-2.0
"""``mmpetl infer CONFIG ADAPTER FILE...``: predict the classes of pictures or videos."""

import argparse
import json
import os
import sys
from typing import Any, Iterator, List

from ..clean_errors import one_line
from ..names import printable
from .unreadable import OPTION, add_option, leave_out


def add_parser(subparsers: Any) -> None:
    """Add ``infer``."""
    from ..training.given import ConfigOptions
    parser = subparsers.add_parser('infer', help='predict classes of pictures or videos')
    parser.add_argument('config', help='config file, or the name of a shipped one')
    parser.add_argument('adapter', help='adapter file or checkpoint')
    parser.add_argument('files', nargs='+', metavar='FILE', help='pictures or videos, or folders of them')
    parser.add_argument('--device', help="for example 'cpu' or 'cuda:0'; default a GPU if there is one")
    parser.add_argument('--batch-size', type=int, default=8, help='files at a time (default 8)')
    parser.add_argument('--top', type=int, default=1, metavar='N', help='the N best classes of each file (default 1)')
    parser.add_argument('--json', action='store_true', help='one line of JSON per file, with all scores')
    add_option(parser)
    parser.add_argument('--force', action='store_true', help='take an adapter whose header differs from the config')
    parser.add_argument(
        '--cfg-options', '--set', nargs='+', action=ConfigOptions, metavar='KEY=VALUE',
        help='override entries of the config')
    parser.set_defaults(run=run)


def files_of(given: List[str]) -> List[str]:
    """The files that were given, and those directly in the folders that were given, hidden ones left out."""
    found = []
    for path in given:
        if os.path.isdir(path):
            inside = sorted(os.path.join(path, n) for n in os.listdir(path) if not n.startswith('.'))
            if not inside:
                raise FileNotFoundError(f'{path} holds no files: give pictures or videos, or a folder of them')
            found += inside
        else:
            found.append(path)
    return found


def _predict(predictor: Any, args: argparse.Namespace) -> Iterator[Any]:
    """The results; what cannot be read is named on stderr and counted last.

    Raises:
        ValueError: If a file cannot be read and must not be left out, or none can be read.
    """
    files = files_of(args.files)
    wrong: List[str] = []

    def unreadable(path: str, error: Exception) -> None:
        if path in args.files and isinstance(error, FileNotFoundError):  # no file of a folder: a name mistyped
            raise error
        said = one_line(error)
        said = said if said.startswith(path) else f'{path}: {said}'
        if not args.skip_unreadable:
            raise ValueError(f'{said}, or leave it out by {OPTION}') from error
        wrong.append(said)

    results = predictor(files, args.batch_size, unreadable)
    note = leave_out(wrong, len(files), 'file', True, sys.stderr)
    yield from results
    if note:
        print(note, file=sys.stderr)


def run(args: argparse.Namespace) -> int:
    """Print one line per file: its name, the class, the score.

    Raises:
        ValueError: If ``--top`` is not positive, or there are fewer classes.
    """
    if args.top < 1:
        raise ValueError(f'--top must be a whole number >= 1, got {args.top}')
    from ..training.infer import Predictor
    predictor = Predictor(args.config, args.adapter, args.device, cfg_options=args.cfg_options, force=args.force)
    if args.top > (predictor.num_classes or args.top):
        raise ValueError(f'--top {args.top}: the model has {predictor.num_classes} classes, give at most as many')
    for result in _predict(predictor, args):
        scores = [float(s) for s in result['pred_scores']]
        names = predictor.classes or list(map(str, range(len(scores))))
        if args.json:
            print(json.dumps(dict(input=str(result['input']), pred_label=int(result['pred_label']),
                                  pred_class=result.get('pred_class'), pred_scores=scores)))
            continue
        best = sorted(range(len(scores)), key=lambda c: -scores[c])[:args.top]
        print(printable(f'{result["input"]}: {", ".join(f"{names[c]} {scores[c]:.3f}" for c in best)}'))
    return 0
