# SPDX-License-Identifier: Apache-2.0
"""The command ``mmpetl``.

Each sub-command is a module of this package with ``add_parser(subparsers)``, imported only when it is asked for, so
that ``mmpetl --help`` starts at once. ``add_parser`` adds one parser of the sub-command's name and sets its
default ``run``, a function of the parsed arguments that returns None or an exit status. Where the module imports
libraries, its arguments stand in :mod:`mmpetl.commands.arguments`.
"""

import argparse
import importlib
import importlib.util
import os
import sys
from dataclasses import dataclass
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from ..clean_errors import run_cleanly
from ..console import VERBOSE, quiet
from ..suggest import nearest
from ..version import __version__


@dataclass(frozen=True)
class Command:
    """A sub-command.

    Attributes:
        module: Its file in this package, with its arguments.
        help: What it does, in one line.
        examples: Command lines as a user types them.
    """
    module: str
    help: str
    examples: Tuple[str, ...]


_LORA = 'lora_vit-base-p16_in21k-pre_1xb64-coslr-100e_vtab'
COMMANDS: Dict[str, Command] = {
    'train': Command('train', 'train the model that a config describes', (
        'mmpetl train quickstart/lora', 'mmpetl train my_config.py --set train_cfg.max_epochs=6 --work-dir runs/a',
        'mmpetl train quickstart/lora --gpus 2', 'mmpetl train quickstart/lora --resume')),
    'test': Command('test', 'test an adapter or a checkpoint', (
        'mmpetl test quickstart/lora work_dirs/lora/adapter.safetensors',
        'mmpetl test quickstart/lora work_dirs/lora/adapter.safetensors --out scores.json --out-item metrics')),
    'infer': Command('infer', 'predict classes of pictures or videos', (
        'mmpetl infer quickstart/lora work_dirs/lora/adapter.safetensors a.png b.png', )),
    'config': Command('config', 'list and show the shipped configs', (
        'mmpetl config list', 'mmpetl config list videomae apt', 'mmpetl config show quickstart/lora')),
    'data': Command('arguments.data', 'check data sets, make one of your own', (
        'mmpetl data make photos/', 'mmpetl data make scans.csv --group-column patient --method lora adaptformer',
        'mmpetl data check own_data/photos/photos_lora_dinov2-small.py', 'mmpetl data check vtab --root data/vtab-1k')),
    'fetch': Command('arguments.fetch', 'official weights and data of the recipes', (
        'mmpetl fetch dinov2-vits14 quickdraw20', 'mmpetl fetch vit-base-in21k vtab')),
    'sweep': Command('arguments.sweep', 'search hyper-parameters and run the final seeds on every task of a suite', (
        f'mmpetl sweep {_LORA} --suite vtab --root data/vtab-1k --seeds 0 1 2', )),
    'report': Command('arguments.report', 'tables and plots of finished sweeps', (
        'mmpetl report work_dirs/sweeps --out work_dirs/report', )),
    'submit': Command('arguments.submit', 'write the ELEVATER submission', (
        'mmpetl submit work_dirs/sweeps/kadaptation --out all_predictions.zip', )),
    'plan': Command('arguments.plan', 'parameters, compute and memory of a config before training', (
        'mmpetl plan quickstart/lora quickstart/linear',
        'mmpetl plan quickstart/lora --compare --budget 24GB',
        f'mmpetl plan {_LORA} --set model.backbone.petl.0.rank=16')),
    'search': Command('search', 'find rate, size and method on the validation part', (
        'mmpetl search quickstart/lora --on-test',
        "mmpetl search my_config.py --samples 32 --space 'lr=loguniform(1e-4, 1e-1)' "
        "'model.backbone.petl.0.rank=choice([4, 8, 16])'")),
    'convert': Command('arguments.convert', 'published weights to OpenMMLab key names', (
        'mmpetl convert ViT-B_16.npz vit-b16.safetensors', )),
    'inspect': Command('arguments.inspect', 'what a checkpoint or adapter file holds', (
        'mmpetl inspect work_dirs/lora/adapter.safetensors', 'mmpetl inspect hf://user/repo')),
    'merge': Command('arguments.merge', 'merge an adapter into its base', (
        'mmpetl merge quickstart/lora work_dirs/lora/adapter.safetensors -o merged.pth', )),
    'export': Command('arguments.export', 'a model for other runtimes and libraries', (
        'mmpetl export quickstart/lora work_dirs/lora/adapter.safetensors -o model.onnx', )),
    'push': Command('push', 'put an adapter onto the Hugging Face hub', (
        'mmpetl push work_dirs/lora/adapter.safetensors user/quickdraw-lora --config quickstart/lora',
        'mmpetl push adapter.safetensors user/flowers --private --licence cc-by-4.0')),
    'doctor': Command('doctor', 'check the installation', ('mmpetl doctor', )),
    'completion': Command('completion', 'tab completion for a shell', (
        'mmpetl completion bash > ~/.local/share/bash-completion/completions/mmpetl',
        'mmpetl completion zsh > ~/.zfunc/_mmpetl    # with fpath=(~/.zfunc $fpath) before compinit in ~/.zshrc',
        'mmpetl completion fish > ~/.config/fish/completions/mmpetl.fish')),
}


def available() -> Dict[str, Command]:
    """The sub-commands whose module is installed."""
    return {name: each for name, each in COMMANDS.items() if importlib.util.find_spec(f'{__package__}.{each.module}')}


def build_parser(command: Optional[str] = None) -> argparse.ArgumentParser:
    """The parser; only the module of ``command`` is imported, the others appear with their one-line help.

    Args:
        command: First word of the command line, if any; ``'*'`` for all sub-commands.
    """
    parser = argparse.ArgumentParser(
        prog='mmpetl', description='Parameter-efficient transfer learning for the OpenMMLab stack.',
        epilog='`mmpetl COMMAND --help` shows the options of a command and examples.')
    parser.add_argument('--version', action='version', version=f'mmpetl {__version__}')
    subparsers = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    for name, each in available().items():
        if command not in (name, '*'):
            subparsers.add_parser(name, help=each.help, add_help=False)
            continue
        importlib.import_module(f'{__package__}.{each.module}').add_parser(subparsers)
        added = subparsers.choices[name]
        lines = [added.epilog, ''] if added.epilog else []
        added.epilog = '\n'.join([*lines, 'examples:', *(f'  {line}' for line in each.examples)])
        added.formatter_class = argparse.RawDescriptionHelpFormatter
    for added in _all_parsers(subparsers):
        if '--debug' not in added._option_string_actions:
            added.add_argument('--debug', action='store_true', help='show tracebacks (as MMPETL_DEBUG=1 does)')
        if '--verbose' not in added._option_string_actions:
            added.add_argument('--verbose', action='store_true', help=VERBOSE)
    return parser


def _all_parsers(subparsers: Any) -> Iterator[argparse.ArgumentParser]:
    """The parsers of all sub-commands, and of their actions."""
    for parser in subparsers.choices.values():
        yield parser
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                yield from _all_parsers(action)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run ``mmpetl`` with these arguments (default: those of the process).

    Returns:
        0, the sub-command's own status, 1 after an error (one line on stderr), 2 for a command line that cannot be
        read, 130 after Ctrl-C.
    """
    arguments: List[str] = list(sys.argv[1:] if argv is None else argv)
    words = [a for a in arguments if not a.startswith('-')]
    if words and arguments[0] == words[0] and words[0] not in available():
        print(f'error: mmpetl has no command {words[0]!r}{nearest(words[0], available())}', file=sys.stderr)
        return 2
    with quiet(arguments):  # from here on: a command's module may import libraries
        return _run(arguments, words)


def _run(arguments: List[str], words: List[str]) -> int:
    args = build_parser(words[0] if words else None).parse_args(arguments)
    status: List[Any] = [0]

    def run(_: Sequence[str]) -> None:
        try:
            status[0] = args.run(args) or 0
            sys.stdout.flush()
        except BrokenPipeError:  # the reader has seen enough: mmpetl config list | head
            # else Python flushes into the broken pipe once more as it ends, and complains
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return run_cleanly(run, arguments) or int(status[0])


if __name__ == '__main__':
    sys.exit(main())
