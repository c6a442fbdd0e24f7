# SPDX-License-Identifier: Apache-2.0
"""``mmpetl train CONFIG``: train the model that a config describes, in one process or several."""

import argparse
import importlib
import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, List, Set

from ..recipes import find_config
from ..training.flags import add_train_arguments


def add_parser(subparsers: Any) -> None:
    """Add ``train``."""
    add_gpus(add_train_arguments(subparsers.add_parser('train', help='train the model that a config describes')), run)


def run(args: argparse.Namespace) -> int:
    """Train here, or in one process per GPU."""
    return launch(args, __name__)


def here(args: argparse.Namespace) -> None:
    """Train in this process."""
    from ..training.run import run_training
    run_training(args)


def add_gpus(parser: argparse.ArgumentParser, run: Any) -> None:
    """Add ``--gpus`` to a command that several processes can share."""
    parser.add_argument('--gpus', type=int, default=1, metavar='N', help='processes on this machine, one per GPU')
    parser.set_defaults(run=run)


def launch(args: argparse.Namespace, module: str) -> int:
    """Call ``here(args)`` of a command's module, or run the module in one process per GPU.

    Raises:
        ValueError: If the number of processes is not positive.
    """
    if args.gpus < 1:
        raise ValueError(f'--gpus must be a whole number >= 1, got {args.gpus}')
    find_config(args.config)  # before libraries are imported
    if args.gpus > 1:
        return several(args.gpus, sys.argv[1:], module)
    importlib.import_module(module).here(args)
    return 0


def without(argv: List[str], options: Set[str]) -> List[str]:
    """Arguments without these options, each of which takes one value."""
    kept, skip = [], False
    for word in argv:
        if skip:
            skip = False
        elif word.split('=')[0] in options:
            skip = '=' not in word
        else:
            kept.append(word)
    return kept


def several(gpus: int, argv: List[str], module: str = __name__) -> int:
    """Run a command in several processes by torchrun.

    Args:
        gpus: Number of processes.
        argv: Arguments of ``mmpetl``; ``--gpus`` is taken out.
        module: Module that each process runs.

    Returns:
        The exit status of torchrun.
    """
    kept = without(argv[1:], {'--gpus'})
    with socket.socket() as probe:  # a free port: two runs on one machine would meet at torchrun's usual one
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    return subprocess.call([
        sys.executable, '-m', 'torch.distributed.run', f'--nproc-per-node={gpus}', '--master-addr=127.0.0.1',
        f'--master-port={port}', '-m', module, *kept, '--launcher', 'pytorch'])


def _main(argv: Sequence[str]) -> None:
    from ..training.run import train
    train(argv)


if __name__ == '__main__':
    from ..clean_errors import run_cleanly
    sys.exit(run_cleanly(_main, sys.argv[1:]))
