# SPDX-License-Identifier: Apache-2.0
"""``mmpetl test CONFIG FILE``: test an adapter or a checkpoint, in one process or several."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from ..training.flags import add_test_arguments
from .train import add_gpus, launch


def add_parser(subparsers: Any) -> None:
    """Add ``test``."""
    add_gpus(add_test_arguments(subparsers.add_parser('test', help='test an adapter or a checkpoint')), run)


def run(args: argparse.Namespace) -> int:
    """Test here, or in one process per GPU."""
    return launch(args, __name__)


def here(args: argparse.Namespace) -> None:
    """Test in this process."""
    from ..training.run import run_test
    run_test(args)


def _main(argv: Sequence[str]) -> None:
    from ..training.run import test
    test(argv)


if __name__ == '__main__':
    from ..clean_errors import run_cleanly
    sys.exit(run_cleanly(_main, sys.argv[1:]))
