# SPDX-License-Identifier: Apache-2.0
"""The folder of a run: who works in it, whether it holds a run already, and from where that one goes on."""

import fcntl
import glob
import json
import os
import re
import shlex
import shutil
import socket
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Dict, Iterator, List, Optional, Sequence, Set, Tuple

from ..hooks.checkpoint import STATE, step_in_name
from ..weights.atomic import atomic_write, remove_dead_parts
from ..weights.errors import WeightFileError
from ..weights.guards import parse_json
from ..weights.io import load_file
from ..weights.reading import read_text

LOCK = '.in_use'
COMMANDS = 'command.txt'
ADAPTERS = ('adapter.safetensors', 'best_adapter.safetensors')
_held: Set[str] = set()


# -- who works in it --------------------------------------------------------------------------------------------------


def is_first_process() -> bool:
    """Whether launchers call this process the first, before processes know of each other."""
    return int(os.environ.get('RANK', os.environ.get('SLURM_PROCID', 0)) or 0) == 0


def make(work_dir: str) -> None:
    """Make the folder of a run.

    Raises:
        ValueError: If that is not possible.
    """
    try:
        os.makedirs(os.path.realpath(work_dir), exist_ok=True)
    except OSError as error:
        raise ValueError(f'{work_dir} cannot be a folder: {error.strerror}: name another one by --work-dir') from error


@contextmanager
def claimed(work_dir: str) -> Iterator[None]:
    """Within the context no other process trains in ``work_dir``; what dead ones left half-written there is removed.

    The lock is the system's, on an open file: it ends with the process, however that ends. Other processes of the same
    run do not ask.

    Raises:
        ValueError: If another process trains there; it is named.
    """
    folder = os.path.realpath(work_dir)
    if not is_first_process() or folder in _held:
        yield
        return
    make(work_dir)
    path = os.path.join(folder, LOCK)
    while True:
        # to append: opening must not empty what the owner has written
        file = open(path, 'a+', encoding='utf-8', errors='replace')  # noqa: SIM115  (held as long as the run lasts)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = _owner(file.read())
            file.close()
            raise ValueError(f'{work_dir} is in use by {owner}: wait for it, or name another folder by '
                             '--work-dir') from None
        except OSError:  # a file system without locks
            break
        if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(file.fileno())):
            break
        file.close()  # its owner removed it in this moment
    file.truncate(0)
    file.write(json.dumps(dict(host=socket.gethostname(), pid=os.getpid())))
    file.flush()
    _held.add(folder)
    try:
        remove_leftovers(folder)
        yield
    finally:
        _held.discard(folder)
        if os.path.exists(path):
            os.unlink(path)
        file.close()


def _owner(text: str) -> str:
    try:
        owner = parse_json(text)
        return f'process {int(owner["pid"])} on {str(owner["host"])[:60]}'
    except (ValueError, TypeError, KeyError):
        return 'another process'


def remove_leftovers(folder: str) -> None:
    """Remove what processes that died while writing left behind, here and one level below."""
    for part in (folder, *glob.glob(os.path.join(glob.escape(folder), '*', ''))):
        remove_dead_parts(part)


# -- how it was made --------------------------------------------------------------------------------------------------


def note_command(folder: str, argv: Sequence[str]) -> None:
    """Add a command line to ``command.txt`` of a folder, unless it is there.

    Args:
        folder: Of a run or a sweep.
        argv: The program and its arguments.
    """
    line = shlex.join([os.path.basename(argv[0]), *argv[1:]]).replace('\n', ' ')
    before = read_commands(folder)
    if line not in before:
        text = '\n'.join([*before, line, ''])
        atomic_write(os.path.join(folder, COMMANDS), lambda file: file.write(text.encode()))


def read_commands(folder: str) -> List[str]:
    """The command lines that worked in a folder, oldest first."""
    path = os.path.join(folder, COMMANDS)
    return read_text(path).splitlines() if os.path.isfile(path) else []


# -- what it holds ----------------------------------------------------------------------------------------------------


def _checkpoints(folder: str) -> List[str]:
    """Paths of what may be checkpoints, here and one level below, the best ones not among them."""
    found = [path for pattern in ('*.pth', '*/*.pth') for path in glob.glob(os.path.join(glob.escape(folder), pattern))]
    return [path for path in found if re.search(r'\d', os.path.basename(path))
            and not os.path.basename(path).startswith('best_')]


def contents(work_dir: str) -> List[str]:
    """Names of what a run left in a folder: checkpoints, pointer and adapters."""
    found = [*_checkpoints(work_dir), *glob.glob(os.path.join(glob.escape(work_dir), 'best_*.pth'))]
    found += [path for name in (*ADAPTERS, 'last_checkpoint') if os.path.exists(path := os.path.join(work_dir, name))]
    return sorted(os.path.relpath(path, work_dir) for path in found)


def refuse_or_clear(work_dir: str, overwrite: bool) -> None:
    """See that a run that begins anew finds an empty folder.

    Args:
        work_dir: The run's folder.
        overwrite: Remove checkpoints and adapters of the run before; logs stay.

    Raises:
        ValueError: If the folder holds a run and ``overwrite`` is not set.
    """
    found = contents(work_dir)
    if found and not overwrite:
        some = ', '.join(found[:3]) + (f' and {len(found) - 3} more' if len(found) > 3 else '')
        raise ValueError(f'{work_dir} holds a run ({some}): go on with it by --resume, begin anew by --overwrite '
                         '(which removes these files), or name another folder by --work-dir')
    for name in found:
        path = os.path.join(work_dir, name)
        shutil.rmtree(path) if os.path.isdir(path) else os.unlink(path)
    if found:
        shutil.rmtree(os.path.join(work_dir, 'pruning'), ignore_errors=True)


# -- from where it goes on --------------------------------------------------------------------------------------------


@dataclass
class Newest:
    """The checkpoint from which a run goes on.

    Attributes:
        path: The file, None if there is none.
        where: Epoch and iteration, for people.
        damaged: Files that are no whole checkpoints, each with the reason.
        pointer: What ``last_checkpoint`` says, if that is something else.
    """
    path: Optional[str] = None
    where: str = ''
    damaged: List[str] = field(default_factory=list)
    pointer: str = ''

    def __str__(self) -> str:
        notes = [f'damaged: {text}' for text in self.damaged]
        notes += [f'last_checkpoint names {self.pointer}'] if self.pointer else []
        tail = f' ({"; ".join(notes)})' if notes else ''
        if self.path is None:
            return f'Resume: there is no checkpoint, the run begins{tail}'
        return f'Resume: {self.path}, {self.where}, is the newest whole checkpoint{tail}'


def newest_checkpoint(work_dir: str, more: Tuple[str, ...] = ()) -> Newest:
    """Find the newest whole checkpoint of a run, whatever its pointer says.

    Of every kind of name (``epoch_*``, ``iter_*``) and folder, files are opened from the highest number downwards until
    one is whole; of those the one that was saved last counts.

    Args:
        work_dir: The run's folder.
        more: Further folders in which its checkpoints may lie.
    """
    groups: Dict[Tuple[str, str], List[str]] = {}
    for path in [path for folder in (work_dir, *more) for path in _checkpoints(folder)]:
        kind = re.sub(r'\d+(?=\D*$)', '', os.path.basename(path))
        groups.setdefault((os.path.dirname(path), kind), []).append(path)
    result, best = Newest(), (-1, -1, -1)
    for paths in groups.values():
        for path in sorted(paths, key=lambda p: step_in_name(os.path.basename(p)), reverse=True):
            rank, where = _look_into(path)
            if rank is None:
                result.damaged.append(where)
                continue
            if rank > best:
                best, result.path, result.where = rank, path, where
            break
    try:
        pointer = read_text(os.path.join(work_dir, 'last_checkpoint')).strip()
    except (OSError, ValueError):
        pointer = ''
    if result.path and os.path.basename(pointer) != os.path.basename(result.path):
        result.pointer = pointer[-200:] or 'nothing'
    return result


def _look_into(path: str) -> Tuple[Optional[Tuple[int, int, int]], str]:
    """(number of the save, iteration, epoch) and words for it; None and the reason if the file is not whole."""
    if os.path.isdir(path):  # written by DeepSpeed, which renames nothing and reads it itself
        return (0, step_in_name(os.path.basename(path)), 0), 'a folder'
    try:
        loaded = load_file(path)
        meta = loaded['meta']
        epoch, iteration = int(meta['epoch']), int(meta['iter'])
    except WeightFileError as error:
        return None, str(error)
    except (KeyError, TypeError, ValueError):
        return None, f'{path}: it says neither epoch nor iteration'
    state = loaded.get(STATE)
    number = int(state.get('number', 0)) if isinstance(state, dict) else 0
    return (number, iteration, epoch), f'epoch {epoch}, iteration {iteration}'
