# SPDX-License-Identifier: Apache-2.0
"""Arguments of the commands whose own files import libraries, so that help, a wrong word and the name of a config that
is not there are answered before that."""

import argparse
import importlib
from typing import Any, Callable, Sequence

from ...recipes import find_config


def later(command: str, look: Callable[[argparse.Namespace], Any] = lambda args: None) -> Callable[..., Any]:
    """``run`` of a command, whose file is imported when it runs.

    Args:
        command: The file's name in :mod:`mmpetl.commands`.
        look: Refuses arguments at once.
    """

    def run(args: argparse.Namespace) -> Any:
        look(args)
        return importlib.import_module(f'mmpetl.commands.{command}').run(args)

    return run


def has_config(args: argparse.Namespace) -> None:
    """Refuse configs that are not there.

    Raises:
        FileNotFoundError: Naming what is like it.
    """
    names: Sequence[str] = args.configs if hasattr(args, 'configs') else [args.config]
    for name in filter(None, names):
        find_config(name)
