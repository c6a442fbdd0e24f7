"""The command ``mmpetl``. Each sub-command is a module of this package with ``add_parser(subparsers)``, imported only
when it is asked for.

``add_parser`` adds one parser of the sub-command's name and sets its default ``run``, a function of the parsed
arguments that returns None or an exit status.
"""

import argparse
import importlib
import importlib.util
import sys
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..clean_errors import run_cleanly
from ..version import __version__

#: Sub-command -> (module, what it does).
COMMANDS: Dict[str, Tuple[str, str]] = {
    'data': ('data_check', 'check the data of a benchmark suite'),
    'sweep': ('sweep', 'search hyper-parameters and run the final seeds on every task of a suite'),
    'report': ('report', 'tables and plots of finished sweeps'),
    'submit': ('submit', 'write the ELEVATER submission'),
    'plan': ('plan', 'parameters, compute and memory of a config before training'),
    'convert': ('convert', 'published weights to OpenMMLab key names'),
    'inspect': ('inspect', 'what a checkpoint or adapter file holds'),
    'merge': ('merge', 'fold an adapter into its base'),
    'export': ('export', 'a model for other runtimes and libraries'),
    'doctor': ('doctor', 'check the installation'),
}


def _available() -> Dict[str, Tuple[str, str]]:
    return {name: entry for name, entry in COMMANDS.items() if importlib.util.find_spec(f'{__package__}.{entry[0]}')}


def build_parser(command: Optional[str] = None) -> argparse.ArgumentParser:
    """The parser; only the module of ``command`` is imported, the others appear with their one-line help.

    Args:
        command: First word of the command line, if any.
    """
    parser = argparse.ArgumentParser(
        prog='mmpetl', description='Parameter-efficient transfer learning for the OpenMMLab stack.')
    parser.add_argument('--version', action='version', version=f'mmpetl {__version__}')
    subparsers = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, (module, text) in _available().items():
        if name == command:
            importlib.import_module(f'{__package__}.{module}').add_parser(subparsers)
        else:
            subparsers.add_parser(name, help=text, add_help=False)
    for added in subparsers.choices.values():
        added.add_argument('--debug', action='store_true', help='show tracebacks (as MMPETL_DEBUG=1 does)')
    return parser


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run ``mmpetl`` with these arguments (default: those of the process).

    Returns:
        0, the sub-command's own status, 1 after an error (one line on stderr), 130 after Ctrl-C.
    """
    arguments: List[str] = list(sys.argv[1:] if argv is None else argv)
    words = [a for a in arguments if not a.startswith('-')]
    args = build_parser(words[0] if words else None).parse_args(arguments)
    status: List[Any] = [0]

    def run(_: Sequence[str]) -> None:
        status[0] = args.run(args) or 0

    return run_cleanly(run, arguments) or int(status[0])


if __name__ == '__main__':
    sys.exit(main())
