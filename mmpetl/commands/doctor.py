# SPDX-License-Identifier: Apache-2.0
"""Check the installation, and say which command mends what: mmpetl doctor."""

import argparse
import importlib
import importlib.util
import json
import os
import re
import sys
import tempfile
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

from ..version import __version__

#: Where the table of tested versions lies, seen from a checkout.
CONSTRAINTS = Path(__file__).resolve().parents[2] / 'requirements' / 'constraints.txt'
RUNTIME = CONSTRAINTS.with_name('runtime.txt')
#: Needed for some commands only: distribution -> what for.
OPTIONAL = {
    'onnx': 'ONNX export',
    'onnxscript': 'ONNX export',
    'onnxruntime': 'check of an ONNX export',
    'timm': 'comparison with timm',
    'transformers': 'comparison with transformers',
    'peft': 'comparison with peft',
    'open_clip_torch': 'text features of CLIP'
}

#: What a run imports.
IMPORTS = ('mmpretrain.models', 'mmaction.models', 'mmpetl.backbones', 'mmpetl.methods')


@dataclass(frozen=True)
class Finding:
    """One check.

    Attributes:
        state: 'ok', 'note' (works, but not as tested) or 'wrong'.
        name: What was looked at.
        text: What was found.
        mend: Command that mends it; empty where nothing is to be done.
    """
    state: str
    name: str
    text: str
    mend: str = ''


def _installed(distribution: str) -> Optional[str]:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def _requirement_lines() -> List[str]:
    """What mmpetl needs, from the checkout or from its own installed metadata."""
    if RUNTIME.is_file():
        lines = RUNTIME.read_text(encoding='utf-8').splitlines()
    else:
        try:
            lines = [line for line in requires('mmpetl') or [] if 'extra ==' not in line]
        except PackageNotFoundError:
            lines = []
    return [line for line in (text.split('#')[0].strip() for text in lines) if line]


def version_findings(lines: Optional[Sequence[str]] = None,
                     look_up: Callable[[str], Optional[str]] = _installed) -> List[Finding]:
    """Installed versions against the requirements.

    Args:
        lines: Requirement lines; None reads mmpetl's own.
        look_up: Distribution name -> installed version or None.
    """
    from packaging.requirements import Requirement
    found = []
    for line in _requirement_lines() if lines is None else lines:
        wanted = Requirement(line)
        if wanted.marker is not None and not wanted.marker.evaluate({'extra': ''}):
            continue
        have, text = look_up(wanted.name), f'{wanted.name}{wanted.specifier}'
        if have is None:
            found.append(Finding('wrong', wanted.name, 'not installed', f"pip install '{text}'"))
        elif not wanted.specifier.contains(have, prereleases=True):
            found.append(
                Finding('wrong', wanted.name, f'{have}, needed is {wanted.specifier}', f"pip install '{text}'"))
        else:
            found.append(Finding('ok', wanted.name, have))
    return found


def pin_findings(text: Optional[str] = None, look_up: Callable[[str], Optional[str]] = _installed) -> List[Finding]:
    """Installed versions against the table of exactly tested ones; a difference is a note, never an error.

    Args:
        text: Content of the table; None reads ``requirements/constraints.txt`` of a checkout.
        look_up: Distribution name -> installed version or None.
    """
    from packaging.requirements import Requirement
    if text is None:
        text = CONSTRAINTS.read_text(encoding='utf-8') if CONSTRAINTS.is_file() else ''
    found = []
    for line in (line.split('#')[0].strip() for line in text.splitlines()):
        wanted = Requirement(line) if line else None
        if wanted is None or (wanted.marker is not None and not wanted.marker.evaluate()):
            continue
        have = look_up(wanted.name)
        pinned = next(iter(wanted.specifier)).version
        if have is not None and re.sub(r'\+.*', '', have) != pinned:  # 2.12.1+cpu is 2.12.1
            found.append(Finding('note', f'{wanted.name} (tested)', f'{have}, tested is {pinned}',
                                 f'pip install {wanted.name}=={pinned}'))
    return found


def _python() -> Finding:
    have = '.'.join(map(str, sys.version_info[:3]))
    from ..compat import environment
    low, high = environment.PYTHON_RANGE
    if low <= sys.version_info[:2] < high:
        return Finding('ok', 'python', have)
    return Finding('wrong', 'python', f'{have}, needed is >={low[0]}.{low[1]},<{high[0]}.{high[1]}',
                   f'make an environment with python {high[0]}.{high[1] - 1}')


def trap_findings() -> List[Finding]:
    """The traps that :func:`mmpetl.compat.environment_warnings` knows."""
    found = []
    from ..compat import environment
    for line in environment.environment_warnings():
        text, _, mend = line.partition(' Run: ')
        found.append(Finding('wrong', 'trap', text, mend))
    return found or [Finding('ok', 'traps', 'none of the known ones')]


def import_findings(modules: Sequence[str] = IMPORTS) -> List[Finding]:
    """Import what a run imports."""
    found = []
    for name in modules:
        try:
            importlib.import_module(name)
            found.append(Finding('ok', name, 'can be imported'))
        except Exception as error:  # whatever a broken installation raises
            line = ' '.join(f'{type(error).__name__}: {error}'.split())
            mend = f'pip install {error.name}' if isinstance(error, ModuleNotFoundError) and error.name else \
                'pip install -c requirements/constraints.txt -r requirements/runtime.txt'
            found.append(Finding('wrong', name, line[:200], mend))
    return found


def _loader() -> Finding:
    """mmengine must read checkpoints through the safe loader: a pickle with code in it has to be refused."""
    import torch
    from mmengine.runner.checkpoint import CheckpointLoader

    class Payload:
        """Calls ``os.getpid`` when an unsafe loader opens it."""

        def __reduce__(self) -> Tuple[Any, ...]:
            return os.getpid, ()

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, 'payload.pth')
        torch.save(dict(state_dict=Payload()), path)
        try:
            CheckpointLoader.load_checkpoint(path, 'cpu', 'silent')
        except ValueError:
            return Finding('ok', 'checkpoints', 'code inside a file is refused')
        except Exception as error:
            return Finding('note', 'checkpoints', f'refused with an unexpected {type(error).__name__}')
    return Finding('wrong', 'checkpoints', 'code inside a checkpoint file would be run',
                   "begin the program or config with 'import mmpetl'")


def _device() -> Finding:
    import torch
    if torch.cuda.is_available():
        try:
            # a torch without kernels for this GPU finds it all the same, and fails here
            (torch.ones(2, 2, device='cuda') @ torch.ones(2, 2, device='cuda')).sum().item()
        except RuntimeError as error:
            return Finding('wrong', 'device', f'{torch.cuda.get_device_name()}: {" ".join(str(error).split())[:120]}',
                           f'install a torch made for this GPU; this one is {torch.__version__}')
        return Finding('ok', 'device', f'{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}')
    if os.path.exists('/dev/nvidia0'):
        return Finding('wrong', 'device', f'this machine has a GPU, torch {torch.__version__} does not see it',
                       'install a CUDA build of torch and a driver that it accepts')
    return Finding('ok', 'device', f'CPU, {torch.get_num_threads()} threads')


def _cache() -> Finding:
    folder = os.path.expanduser(os.environ.get('MMPETL_CACHE', '~/.cache/mmpetl'))
    place = folder
    while place and not os.path.isdir(place) and os.path.dirname(place) != place:
        place = os.path.dirname(place)
    there = folder
    while there and not os.path.lexists(there):
        there = os.path.dirname(there)
    if not os.access(place, os.W_OK) or not os.path.isdir(there or '.'):
        return Finding('wrong', 'cache', f'{folder} cannot be written', 'export MMPETL_CACHE=<a folder of yours>')
    return Finding('ok', 'cache', folder if os.path.isdir(folder) else f'{folder} (made at the first download)')


def _optional() -> Finding:
    missing = [f'{name} ({use})' for name, use in OPTIONAL.items() if _installed(name) is None]
    if not missing:
        return Finding('ok', 'extras', 'all installed')
    return Finding('note', 'extras', f'not installed: {", ".join(missing)}', "pip install 'mmpetl[all]'")


def examine() -> List[Finding]:
    """All checks, in the order of a run."""
    found = [Finding('ok', 'mmpetl', __version__), _python(), *version_findings(), *pin_findings(), *trap_findings()]
    found += import_findings()
    for check in (_loader, _device, _cache, _optional):
        try:
            found.append(check())
        except Exception as error:  # a check must not hide the others
            found.append(Finding('wrong', check.__name__.strip('_'), f'{type(error).__name__}: {error}'))
    return found


def _print(found: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.table import Table
    table = Table('', 'what', 'found', 'mend with', box=None)
    colours: Dict[str, str] = {'ok': 'green', 'note': 'yellow', 'wrong': 'red'}
    for entry in found:
        cells = (text.replace('[', r'\[') for text in (entry.name, entry.text, entry.mend))
        table.add_row(f'[{colours[entry.state]}]{entry.state}[/]', *cells)
    # in a pipe rich would take 80 columns and break the commands that mend
    Console(soft_wrap=True, width=None if sys.stdout.isatty() else 200).print(table)
    counts = {state: sum(entry.state == state for entry in found) for state in colours}
    print(f'{counts["ok"]} ok, {counts["note"]} to note, {counts["wrong"]} wrong')


def add_parser(subparsers: Any) -> None:
    """Add ``mmpetl doctor``."""
    parser = subparsers.add_parser('doctor', help='check the installation')
    parser.add_argument('--json', action='store_true', help='machine-readable output')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings.

    Returns:
        1 when something is wrong, else 0.
    """
    found = examine()
    if args.json:
        print(json.dumps([asdict(entry) for entry in found], indent=2))
    else:
        _print(found)
    return int(any(entry.state == 'wrong' for entry in found))
