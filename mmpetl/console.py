# SPDX-License-Identifier: Apache-2.0
"""What a command shows on the console: its own lines; everything goes to the log file, and to the console as well with
``--verbose``.

Hidden are the dumps of MMEngine (environment, config, table of hooks), the warnings of other packages and the details
of this one. Python users of the package see what they saw: only a command begins :func:`quiet`.
"""

import io
import logging
import logging.handlers
import os
import re
import sys
import sysconfig
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, Optional

from .on_import import after_import, before_import

#: Modules of this package whose lines, warnings excepted, are details.
DETAILS = ('mmpetl.training.optim', 'mmpetl.hooks.audit', 'mmpetl.hooks.adapter', 'mmpetl.backbones.load_hook',
           'mmpetl.adapters.files', 'mmpetl.compat')
#: Help of ``--verbose``.
VERBOSE = 'show on the console too what the log file holds: environment, config, hooks, warnings of libraries'
#: Seconds between two lines of training.
EVERY = 10.0
_PROGRESS = re.compile(r'(?:Epoch|Iter)\((train|val|test)\)\s+((?:\[[^\]]*\]\s*)+)(.*)', re.DOTALL)
_VALUE = re.compile(r'(\S+): (.+?)(?=\s+\S+: |\s*$)')
#: What a line of training leaves to the log file.
_LEFT_OUT = ('base_lr', 'time', 'data_time', 'memory', 'grad_norm')
_INSTALLED = tuple({sysconfig.get_paths()[key] for key in ('purelib', 'platlib', 'stdlib')})

_quiet = False
_early: Optional[logging.handlers.MemoryHandler] = None  # of warnings until there is a log file
_hushed: list[tuple[logging.StreamHandler, logging.Filter, Optional[logging.Formatter]]] = []
_made: list[tuple[Any, Any]] = []  # MMEngine's class of loggers, and how it makes one
_epochs: Optional[int] = None


def is_quiet() -> bool:
    """Whether a command runs that shows its own lines only."""
    return _quiet


def _foreign(name: str, file: str) -> bool:
    """Whether code is of another package: neither of this one nor of a file of the user's."""
    if name.split('.')[0] == 'mmpetl':
        return False
    return file.startswith((*_INSTALLED, '<frozen')) or '/site-packages/' in file or '/dist-packages/' in file


def set_epochs(number: Optional[int]) -> None:
    """Tell the console of how many epochs a training has."""
    global _epochs
    _epochs = number


def _speaker() -> tuple[str, str]:
    """Module and file of the code that logs; MMEngine's ``print_log`` speaks for whoever calls it."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get('__name__', ''))
        if name != __name__ and name.split('.')[0] != 'logging' and not name.startswith('mmengine.logging'):
            return name, frame.f_code.co_filename
        frame = frame.f_back
    return '', ''


class ConsoleFilter(logging.Filter):
    """Lets through what a reader of the console needs: lines of this package and of the user's own files, scores,
    errors, and of training a line every :data:`EVERY` seconds, the first and the last."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = float('-inf')

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the console shows a record."""
        if record.levelno >= logging.ERROR:
            return True
        progress = _PROGRESS.match(record.getMessage())
        if progress:
            return ('eta: ' not in progress[3] and progress[1] != 'train') or self._due(progress[1], progress[2])
        name, file = _speaker()
        if _foreign(name, file):
            return False
        return record.levelno > logging.INFO or not name.startswith(DETAILS)

    def _due(self, mode: str, position: str) -> bool:
        now, epoch = time.monotonic(), re.match(r'\[\s*(\d+)\]', position)
        whole = all(a == b for a, b in re.findall(r'(\d+)/(\d+)', position))
        if whole and mode != 'train':
            return False  # the scores come next
        last = whole and (epoch is None or int(epoch[1]) == _epochs)
        if now - self._shown < EVERY and not last:
            return False
        self._shown = now
        return True


class ConsoleFormatter(logging.Formatter):
    """The message alone; scores and progress in few words."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of the console."""
        text = record.getMessage()
        progress = _PROGRESS.match(text)
        if progress:
            return _short(progress[1], progress[2], progress[3])
        prefix = {logging.WARNING: 'warning: ', logging.ERROR: 'error: '}.get(record.levelno, '')
        return prefix + text


def _short(mode: str, position: str, values: str) -> str:
    """``train  epoch 2  40/44  loss 1.066  lr 9e-03  0:00:10 left``."""
    places = [re.sub(r'\s', '', place) for place in re.findall(r'\[([^\]]*)\]', position)]
    epoch = [f'epoch {places[0]}' + (f'/{_epochs}' if _epochs else '')] if len(places) > 1 else []
    words = [f'{mode:<6}', *epoch] + ([places[-1]] if mode == 'train' or 'eta' in values else [])
    left = ''
    for key, value in _VALUE.findall(values):
        if key == 'eta':
            left = f'{value.strip()} left'
        elif key not in _LEFT_OUT:
            words.append(f'{key} {_number(key, value.strip())}')
    return '  '.join([*words, left] if left else words)


def _number(key: str, text: str) -> str:
    """A number in as many digits as one reads."""
    try:
        return f'{float(text):.1e}' if key.split('/')[-1] == 'lr' else f'{float(text):.4g}'
    except ValueError:
        return text


def hush(logger: logging.Logger) -> None:
    """Let the console handlers of an MMEngine logger show what :class:`ConsoleFilter` allows; files receive every
    line. Warnings that were raised before there was a log file go into it now."""
    for handler in logger.handlers:
        if type(handler) is logging.StreamHandler and not any(isinstance(f, ConsoleFilter) for f in handler.filters):
            _hushed.append((handler, ConsoleFilter(), handler.formatter))
            handler.addFilter(_hushed[-1][1])
            handler.setFormatter(ConsoleFormatter())
        elif isinstance(handler, logging.FileHandler) and _early is not None:
            _early.setTarget(handler)
            _early.flush()
            _early.flushLevel = logging.NOTSET


class _ToFile(io.TextIOBase):
    """A stream whose lines go to the log files of a logger."""

    def __init__(self, logger: logging.Logger) -> None:
        self.handlers = [h for h in logger.handlers if isinstance(h, logging.FileHandler)]

    def write(self, text: str) -> int:
        """Log what is not blank."""
        if text.strip():
            record = logging.LogRecord('stdout', logging.INFO, __file__, 0, text.rstrip(), None, None)
            for handler in self.handlers:
                handler.handle(record)
        return len(text)


def quiet_class(kind: Any) -> Any:
    """A runner class whose console is quiet from its first line on, in a command that is; else the class itself."""
    if not _quiet:
        return kind

    def build_logger(self: Any, *args: Any, **kwargs: Any) -> Any:
        logger = kind.build_logger(self, *args, **kwargs)
        hush(logger)
        return logger

    def load_checkpoint(self: Any, *args: Any, **kwargs: Any) -> Any:
        with redirect_stdout(_ToFile(self.logger)):  # upstream prints here
            return kind.load_checkpoint(self, *args, **kwargs)

    return type(kind.__name__, (kind, ), dict(build_logger=build_logger, load_checkpoint=load_checkpoint,
                                             __module__=kind.__module__))


def _show_warning(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
    """Warnings of this package and of the user's files stand on the console, others in the log file."""
    module = next((name for name, each in list(sys.modules.items()) if getattr(each, '__file__', None) == filename), '')
    text = warnings.formatwarning(message, category, filename, lineno, line).rstrip()
    if _early is not None:
        _early.handle(logging.LogRecord('py.warnings', logging.WARNING, filename, lineno, text, None, None))
    if not _foreign(module, filename):
        print(f'warning: {message}', file=sys.stderr)


def _say_starting() -> None:
    """A word to who waits at a terminal: the packages take seconds, and longer on a busy machine."""
    first = int(os.environ.get('LOCAL_RANK', 0)) == 0
    if _quiet and first and 'torch' not in sys.modules and sys.stderr is not None and sys.stderr.isatty():
        print('starting  PyTorch and OpenMMLab are loading', file=sys.stderr, flush=True)


def _hush_loggers() -> None:
    """Let every logger that MMEngine makes in the command begin hushed; to make one now would import PyTorch."""
    if not _quiet:
        return
    from mmengine.logging import MMLogger
    make = MMLogger.__init__

    def make_hushed(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        hush(self)

    _made.append((MMLogger, make))
    MMLogger.__init__ = make_hushed
    for logger in getattr(MMLogger, '_instance_dict', {}).values():
        hush(logger)


@contextmanager
def quiet(argv: Sequence[str] = ()) -> Iterator[None]:
    """Within the context a command shows its own lines only.

    Args:
        argv: Its arguments; ``--verbose`` among them shows everything.
    """
    global _quiet, _early
    if '--verbose' in argv or _quiet:
        yield
        return
    _early = logging.handlers.MemoryHandler(10_000, flushLevel=logging.CRITICAL)
    _early.setFormatter(logging.Formatter('%(message)s'))
    root, shown = logging.getLogger(), warnings.showwarning
    others = root.handlers[:]
    if not others:  # else the interpreter prints warnings of libraries' loggers to stderr
        root.addHandler(_early)
    _quiet = True
    before_import('torch', _say_starting)
    after_import('mmengine.logging', _hush_loggers)
    warnings.showwarning = _show_warning
    try:
        yield
    finally:
        _quiet = False
        warnings.showwarning = shown
        root.removeHandler(_early)
        _early = None
        while _made:
            kind, make = _made.pop()
            kind.__init__ = make
        while _hushed:
            handler, hidden, formatter = _hushed.pop()
            handler.removeFilter(hidden)
            handler.setFormatter(formatter)
        set_epochs(None)
