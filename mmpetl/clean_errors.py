# SPDX-License-Identifier: Apache-2.0
"""One clear line instead of a traceback, for everything that a user starts from a shell."""

import errno
import gc
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional

from .console import quiet
from .names import printable
from .suggest import nearest

DEBUG_VARIABLE = 'MMPETL_DEBUG'
#: Seconds after a Ctrl-C in which another does nothing: what ends a run, and says how it goes on, is whole.
PATIENCE = 10.
#: What to do about an error of the file system.
_REMEDIES = {
    errno.ENOENT: 'check the name', errno.ENOTDIR: 'a part of the path is a file, name another one',
    errno.EISDIR: 'it is a folder, name a file', errno.EEXIST: 'it is there already, name another one',
    errno.EACCES: 'it is not allowed there, name another place',
    errno.EPERM: 'it is not allowed there, name another place',
    errno.EROFS: 'nothing can be written here, name another place', errno.ENOSPC: 'the disk is full, make room',
    errno.EDQUOT: 'your share of the disk is full, make room', errno.EFBIG: 'no larger file is allowed here, make room',
    errno.ELOOP: 'a link leads to itself, remove it or name another file', errno.ENAMETOOLONG: 'give a shorter name'}
_QUOTES = '\'"'
#: Errors whose own words are a sentence.
_SENTENCES = ('ValueError', 'OSError', 'WeightFileError')


def debug_wanted(argv: Sequence[str]) -> bool:
    """Whether ``--debug`` is among the arguments or the environment variable ``MMPETL_DEBUG`` is set and not 0."""
    return '--debug' in argv or os.environ.get(DEBUG_VARIABLE, '0') not in ('', '0')


def _near_types(name: str, scope: str, kind: str) -> str:
    """Hint for a type that MMEngine's registry does not know: the nearest names that it does know."""
    from mmengine import registry

    roots = [r for r in vars(registry).values() if isinstance(r, registry.Registry) and r.name == kind]
    known = {n for root in roots for r in (root, root.children.get(scope, root)) for n in r.module_dict}
    if '.' in name:  # a type with its scope
        scope, name = name.split('.', 1)
        known = {n for root in roots if scope in root.children for n in root.children[scope].module_dict}
    hint = nearest(name, sorted(known))
    return hint if 'did you mean' in hint else ''


def plain_error(error: BaseException) -> Optional[Exception]:
    """What a loader's worker raised, as if it had been raised here: torch hands over its traceback as one text.

    Args:
        error: What a pass over a loader raised.

    Returns:
        The error with its line alone; None for errors of another origin.
    """
    text = str(error.args[0]) if error.args else ''
    if isinstance(error, RuntimeError) and re.match(r'DataLoader worker .*(exited unexpectedly|is killed)', text):
        return RuntimeError(f'a worker of a data loader was ended from outside ({" ".join(text.split()):.200}), often '
                            'for want of memory: lower num_workers or batch_size of the loader')
    if 'Original Traceback' not in text:
        return None
    lines = text.splitlines()
    heads = [n for n, line in enumerate(lines) if re.match(r'(Original )?Traceback \(most recent call last', line)]
    end = next((number for number in range((heads or [0])[-1] + 1, len(lines)) if lines[number][:1].strip()), None)
    if end is None:
        return None
    kind, _, said = ' '.join(' '.join(lines[end:]).split()).partition(': ')
    kind = kind.split('.')[-1]
    file = re.fullmatch(r"\[Errno (\d+)\] (.*): '(.*)'", said)
    if file:
        return OSError(int(file[1]), file[2], file[3])  # of the class that its number stands for
    return ValueError(said if kind in _SENTENCES and ' ' in said else f'{kind}: {said}'.rstrip(': '))


def one_line(error: BaseException) -> str:
    """The message of an error in one line, without the traceback that data-loading workers put into theirs."""
    error = plain_error(error) or error
    text = str(error.args[0]) if isinstance(error, KeyError) and len(error.args) == 1 else str(error)
    message = ' '.join(line.strip() for line in text.splitlines() if line.strip())
    if isinstance(error, OSError) and error.strerror and error.filename:
        remedy = _REMEDIES.get(error.errno or 0, '')
        told = not remedy or ': ' in error.strerror or ';' in error.strerror  # some say it themselves
        return f'{error.strerror}: {error.filename}' + ('' if told else f': {remedy}')
    if isinstance(error, OSError) and message == str(OSError(error.errno, error.strerror)):  # of no file
        return f'{error.strerror}: {_REMEDIES.get(error.errno or 0, "try again")}'
    if isinstance(error, RuntimeError) and message.startswith('Symlink loop from '):
        return f'{message.removeprefix("Symlink loop from ").strip(_QUOTES)}: {_REMEDIES[errno.ELOOP]}'
    unknown = re.match(r'(\S+) is not in the (\w+)::([\w ]+) registry', message)
    if unknown:
        name, scope, kind = unknown.groups()
        return f'{name} is not a {kind} known in the scope {scope}{_near_types(name, scope, kind)}'
    plain = isinstance(error,
                       (ValueError, OSError, KeyError)) and not isinstance(error, UnicodeError) and ' ' in message
    return message if plain else f'{type(error).__name__}: {message}'.rstrip(': ')


def _file_handlers() -> list[logging.FileHandler]:
    """The open log files of mmengine's loggers."""
    from mmengine.logging import MMLogger
    loggers = list(getattr(MMLogger, '_instance_dict', {}).values())
    return [handler for logger in loggers for handler in logger.handlers if isinstance(handler, logging.FileHandler)]


def report(error: BaseException) -> None:
    """Print one line to stderr; the traceback goes into the run's log file if there is one."""
    handlers = _file_handlers()
    record = logging.LogRecord('mmpetl', logging.ERROR, __file__, 0, ''.join(traceback.format_exception(error)), None,
                               None)
    for handler in list(handlers):
        try:
            handler.acquire()
            handler.stream.write(handler.format(record) + handler.terminator)
            handler.flush()
        except Exception:  # a full disk, a closed file: the line below is what counts
            handlers.remove(handler)
        finally:
            handler.release()
    rank = f' (process {os.environ["RANK"]})' if int(os.environ.get('WORLD_SIZE',
                                                                    1)) > 1 and 'RANK' in os.environ else ''
    sys.stdout.flush()  # the error is the last line
    where = f'traceback in {handlers[-1].baseFilename}' if handlers else 'traceback with --debug'
    try:
        print(f'error{rank}: {_line(error)} [{where}]', file=sys.stderr, flush=True)
    except (OSError, ValueError):  # nobody listens
        pass


def _line(error: BaseException) -> str:
    """The line of an error, even of one whose own message cannot be made."""
    try:
        return printable(one_line(error))
    except Exception:
        return type(error).__name__


def _check_empty(argv: Sequence[str]) -> None:
    """Refuse an empty word, which is a shell variable without a value: as if the option were not there, it begins a run
    anew, or takes the current folder."""
    for before, word in zip(('', *argv), argv):
        if not word:
            where = f'{before} is followed by' if before.startswith('-') else 'there is'
            raise ValueError(f"{where} an empty word '': give a value, or leave it out (is a variable of the shell not "
                             'set?)')


@contextmanager
def _interrupted_once() -> Iterator[None]:
    """Within the context, and after an interrupt until the process ends, a second Ctrl-C does not cut what the first
    one began, unless that takes longer than :data:`PATIENCE`."""
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield  # ignored, as behind nohup, or somebody else's
        return
    first: list[float] = []

    def handle(number: int, frame: Any) -> None:
        if not first or time.monotonic() - first[0] > PATIENCE:
            first[:] = [time.monotonic()]
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        if not first:
            signal.signal(signal.SIGINT, before)


def run_cleanly(main: Callable[[Sequence[str]], Any], argv: Sequence[str]) -> int:
    """Run a command and turn what it raises into one line and an exit status.

    Args:
        main: The command; takes the arguments.
        argv: Its arguments without the program's name. ``--debug`` among them lets errors through, ``--verbose`` shows
            all that libraries say.

    Returns:
        0, 1 after an error, 130 after Ctrl-C.
    """
    logging.raiseExceptions = debug_wanted(argv)  # a log on a full disk would print tracebacks of its own
    try:
        _check_empty(argv)
        with _interrupted_once(), quiet(argv):
            main(argv)
    except KeyboardInterrupt as stop:
        print(f'interrupted{f": {stop}" if str(stop) else ""}', file=sys.stderr)
        return 130
    except Exception as error:
        if debug_wanted(argv):
            raise
        report(error)
        return 1
    torch = sys.modules.get('torch')
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        gc.collect()  # a DDP model that outlives its group sometimes aborts the process at exit
        torch.distributed.destroy_process_group()
    return 0
