"""``mmpetl test CONFIG FILE``: test an adapter or a checkpoint, in one process or several."""

import argparse
import sys
from typing import Any

from ..training.flags import add_test_arguments
from .train import several

_EACH = 'mmpetl.commands.test'


def add_parser(subparsers: Any) -> None:
    """Add ``test``."""
    parser = add_test_arguments(subparsers.add_parser('test', help='test an adapter or a checkpoint'))
    parser.add_argument('--gpus', type=int, default=1, metavar='N', help='processes on this machine, one per GPU')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Test here, or in one process per GPU.

    Raises:
        ValueError: If the number of processes is not positive.
    """
    if args.gpus < 1:
        raise ValueError(f'--gpus must be a whole number >= 1, got {args.gpus}')
    if args.gpus > 1:
        return several(args.gpus, sys.argv[1:], _EACH)
    from ..training.run import run_test
    run_test(args)
    return 0


if __name__ == '__main__':
    from ..clean_errors import run_cleanly
    from ..training.run import test
    sys.exit(run_cleanly(test, sys.argv[1:]))
