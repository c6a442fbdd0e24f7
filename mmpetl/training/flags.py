# SPDX-License-Identifier: Apache-2.0
"""The flags of training and testing: the union of mmpretrain's and mmaction2's, in the same positional order."""

import argparse

from ..console import VERBOSE
from ..names import folder
from .given import ConfigOptions

#: Name of a logger -> MMEngine's backend, the module that it needs, and the package that brings it.
LOGGERS = {
    'tensorboard': ('TensorboardVisBackend', 'tensorboard', 'tensorboard'),
    'wandb': ('WandbVisBackend', 'wandb', 'wandb'),
    'mlflow': ('MLflowVisBackend', 'mlflow', 'mlflow'),
}
#: Help of ``--force`` wherever an adapter is loaded.
FORCE = 'take an adapter in spite of other arguments, classes or preprocessing than it was trained with'


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--work-dir', type=folder,
                        help='folder of logs and checkpoints; default work_dirs/<name of the config>')
    parser.add_argument(
        '--cfg-options',
        '--set',
        nargs='+',
        action=ConfigOptions,
        metavar='KEY=VALUE',
        help='override entries of the config, for example model.backbone.petl.0.rank=4 or key="[(a,b),(c,d)]"')
    parser.add_argument('--force', action='store_true', help=FORCE)
    parser.add_argument('--amp', action='store_true', help='automatic mixed precision')
    parser.add_argument('--no-pin-memory', action='store_true', help='no pinned memory in the dataloaders')
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='what started the processes')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help='set by the launcher')
    parser.add_argument('--verbose', action='store_true', help=VERBOSE)
    parser.add_argument('--debug', action='store_true', help='show tracebacks (as MMPETL_DEBUG=1 does)')


def add_train_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the arguments of ``tools/train.py`` and ``mmpetl train`` to a parser, and return it."""
    parser.add_argument('config', help='config file, or the name of a shipped one')
    _add_common(parser)
    parser.add_argument('--resume', nargs='?', const='auto', metavar='CHECKPOINT',
                        help='resume from this checkpoint, or without a value from the newest one in the work dir')
    parser.add_argument('--overwrite', action='store_true',
                        help='begin anew in a work dir that holds a run; its checkpoints and adapters are removed')
    parser.add_argument('--no-validate', action='store_true', help='no validation while training')
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate by the actual over the base batch size')
    parser.add_argument(
        '--no-persistent-workers', action='store_true', help='start the dataloader workers anew in every epoch')
    parser.add_argument('--seed', type=int, help='random seed')
    parser.add_argument('--log-to', nargs='+', choices=sorted(LOGGERS), metavar='WHERE',
                        help=f'log there too: {", ".join(sorted(LOGGERS))}')
    parser.add_argument('--diff-rank-seed', action='store_true', help='another seed for each process')
    parser.add_argument('--deterministic', action='store_true', help='deterministic algorithms')
    return parser


def add_test_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the arguments of ``tools/test.py`` and ``mmpetl test`` to a parser, and return it."""
    parser.add_argument('config', help='config file, or the name of a shipped one')
    parser.add_argument('checkpoint', nargs='?',
                        help='checkpoint or adapter file; not needed where nothing trains, as in zero-shot')
    _add_common(parser)
    parser.add_argument('--out', help='file for the predictions (.pkl) or metrics (.json, .yaml, .pkl), see --out-item')
    parser.add_argument('--out-item', choices=['metrics', 'pred'], help='what --out receives; default pred')
    parser.add_argument('--dump', metavar='PKL', help='file for the predictions, for offline evaluation')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', type=folder, help='folder for pictures of predictions')
    parser.add_argument('--interval', type=int, default=1, help='show every n-th sample')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds a window stays')
    parser.add_argument(
        '--tta',
        action='store_true',
        help="test-time augmentation: the config's tta_model and tta_pipeline, else flips")
    return parser


def train_parser() -> argparse.ArgumentParser:
    """The parser of ``tools/train.py``."""
    return add_train_arguments(argparse.ArgumentParser(prog='train.py', description='Train a model'))


def test_parser() -> argparse.ArgumentParser:
    """The parser of ``tools/test.py``."""
    return add_test_arguments(argparse.ArgumentParser(prog='test.py', description='Test a model'))
