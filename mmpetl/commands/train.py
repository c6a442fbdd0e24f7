"""``mmpetl train CONFIG``: train the model that a config describes, in one process or several."""

import argparse
import socket
import subprocess
import sys
from typing import Any, List

from ..training.flags import add_train_arguments

#: What several processes run in place of the command itself.
_EACH = 'mmpetl.commands.train'


def add_parser(subparsers: Any) -> None:
    """Add ``train``."""
    parser = add_train_arguments(subparsers.add_parser('train', help='train the model that a config describes'))
    parser.add_argument('--gpus', type=int, default=1, metavar='N', help='processes on this machine, one per GPU')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Train here, or start one process per GPU.

    Raises:
        ValueError: If the number of processes is not positive.
    """
    if args.gpus < 1:
        raise ValueError(f'--gpus must be a whole number >= 1, got {args.gpus}')
    if args.gpus > 1:
        return several(args.gpus, sys.argv[1:])
    from ..training.run import run_training
    run_training(args)
    return 0


def several(gpus: int, argv: List[str], module: str = _EACH) -> int:
    """Run a command in several processes by torchrun.

    Args:
        gpus: Number of processes.
        argv: Arguments of ``mmpetl``; ``--gpus`` is taken out.
        module: Module that each process runs.

    Returns:
        The exit status of torchrun.
    """
    kept, skip = [], False
    for word in argv[1:]:
        if not skip and not word.startswith('--gpus='):
            skip = word == '--gpus'
            if skip:
                continue
            kept.append(word)
        else:
            skip = False
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    return subprocess.call([
        sys.executable, '-m', 'torch.distributed.run', f'--nproc-per-node={gpus}', '--master-addr=127.0.0.1',
        f'--master-port={port}', '-m', module, *kept, '--launcher', 'pytorch'])


if __name__ == '__main__':
    from ..clean_errors import run_cleanly
    from ..training.run import train
    sys.exit(run_cleanly(train, sys.argv[1:]))
