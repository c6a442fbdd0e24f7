# SPDX-License-Identifier: Apache-2.0
"""The rooms of the package and who may import whom: one row each, from the lowest to the highest.

``tests/test_layering.py`` checks the table; ``python tests/rooms.py --write`` prints it into CONTRIBUTING.md.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, List, Optional, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / 'tools'))

from pages import between  # noqa: E402

MARKS = ('<!-- rooms: python tests/rooms.py --write -->', '<!-- end of rooms -->')
UPSTREAM = ('mmpretrain', 'mmaction', 'mmcv')


@dataclass(frozen=True)
class Room:
    """One file or folder of ``mmpetl/``.

    Attributes:
        name: Name below ``mmpetl/``.
        holds: What one finds in it.
        imports: Rooms that it may import besides itself.
        outside: Packages besides the standard library that it may import; None: any.
        never: Packages that it must not import.
        lazy: Whether it may import other rooms inside functions, so that a command starts quickly.
    """
    name: str
    holds: str
    imports: Tuple[str, ...] = ()
    outside: Optional[Tuple[str, ...]] = None
    never: Tuple[str, ...] = ()
    lazy: bool = False

    @property
    def path(self) -> str:
        return f'mmpetl/{self.name}/' if (ROOT / 'mmpetl' / self.name).is_dir() else f'mmpetl/{self.name}.py'


_WAIST = ('registry', 'suggest', 'sites')
_FILES = (*_WAIST, 'names', 'version', 'weights')
_TUNED = (*_FILES, 'tuning', 'merging')
_DATA = ('datasets', 'evaluation', 'models')

ROOMS: List[Room] = [
    Room('version', 'the version', outside=()),
    Room('on_import', 'actions that wait for an import', outside=()),
    Room('suggest', 'hints for unknown names', outside=()),
    Room('names', 'names out of files: as paths and as text', outside=()),
    Room('recipes', 'the shipped configs by name', ('suggest', ), outside=()),
    Room('registry', "registries, children of MMEngine's", outside=('mmengine', )),
    Room('recompute', 'what is computed again in the backward pass', outside=('torch', )),
    Room('sites', 'the waist: `BlockSpec`, `Method`, `Tap`', imports=('suggest', ), outside=('torch', 'mmengine')),
    Room('console', 'what a command shows, and what only its log file holds', ('on_import', ), outside=('mmengine', )),
    Room('clean_errors', 'one clear line instead of a traceback', ('console', 'names', 'suggest')),
    Room('weights', 'reading and writing files safely, converters, exports', ('names', 'version'), never=UPSTREAM),
    Room('compat', 'remedies for the pinned stack', ('names', 'weights'), lazy=True),
    Room('methods', 'one published method per file', ('registry', 'suggest', 'sites', 'recompute'), never=UPSTREAM),
    Room('backbones', 'one family of backbones per file, `attach`',
         (*_WAIST, 'recompute', 'weights', 'compat')),
    Room('tuning', 'what trains, counts, adapter state', ('sites', 'weights')),
    Room('merging', 'merging methods into the base', ('sites', 'tuning')),
    Room('adapters', 'adapter files in use, banks, mixed batches, combinations', (*_TUNED, 'backbones')),
    Room('models', 'heads and preprocessors that upstream lacks', _FILES),
    Room('datasets', 'suites, lists, samplers, transforms, reading pictures and videos', _FILES),
    Room('evaluation', 'metrics, means over suites, efficiency', (*_FILES, 'datasets')),
    Room('hooks', 'checkpoints, adapters, audit, guards, loops that resume exactly', (*_TUNED, 'adapters', *_DATA)),
    Room('features', 'the feature cache: store and hook', (*_TUNED, 'backbones', 'hooks')),
    Room('training', 'flags, config, tasks, build, run, optimizers, several processes',
         (*_TUNED, 'recipes', 'console', 'clean_errors', 'compat', 'backbones', 'adapters', *_DATA, 'features', 'hooks')),
    Room('pruning', "E2VPT's procedure", (*_TUNED, 'hooks', 'training')),
    Room('costs', 'what a config costs: parameters, operations, memory',
         (*_TUNED, 'recompute', 'compat', 'backbones', 'training')),
    Room('sweeps', 'plan, trials, search, workers, rows, report, submission',
         (*_TUNED, 'clean_errors', *_DATA, 'training', 'costs')),
    Room('apis', 'the face: what Python users call',
         (*_TUNED, 'backbones', 'adapters', *_DATA, 'training', 'costs', 'sweeps'), lazy=True),
    Room('commands', 'the command line: one file per command',
         (*_TUNED, 'recipes', 'console', 'clean_errors', 'compat', 'backbones', 'adapters', *_DATA, 'features', 'hooks', 'pruning',
          'training', 'costs', 'sweeps', 'apis'), lazy=True),
    Room('__main__', '`python -m mmpetl`', ('commands', ), outside=()),
    Room('__init__', 'the face, lazily', ('on_import', 'version'), outside=(), lazy=True),
]
ROOM: Dict[str, Room] = {room.name: room for room in ROOMS}


def table() -> str:
    """The rooms as Markdown."""
    lines = ['| room | holds | may import |', '|---|---|---|']
    for room in ROOMS:
        lines.append(f'| `{room.path}` | {room.holds} | {", ".join(room.imports) or "nothing of mmpetl"} |')
    return '\n'.join(lines)


def updated(text: str) -> str:
    """``text`` with the table between the marks."""
    return between(text, *MARKS, table())


if __name__ == '__main__':
    page = ROOT / 'CONTRIBUTING.md'
    new = updated(page.read_text(encoding='utf-8'))
    if '--write' in sys.argv:
        page.write_text(new, encoding='utf-8')
    else:
        print(table())
