"""One clear line instead of a traceback, for everything that a user starts from a shell."""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

DEBUG_VARIABLE = 'MMPETL_DEBUG'


def debug_wanted(argv: Sequence[str]) -> bool:
    """Whether ``--debug`` is among the arguments or the environment variable ``MMPETL_DEBUG`` is set and not 0."""
    return '--debug' in argv or os.environ.get(DEBUG_VARIABLE, '0') not in ('', '0')


def one_line(error: BaseException) -> str:
    """The message of an error in one line, without the traceback that data-loading workers put into theirs."""
    text = str(error.args[0]) if isinstance(error, KeyError) and len(error.args) == 1 else str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any('Original Traceback' in line for line in lines):
        lines = lines[-1:]
        return lines[0]
    message = ' '.join(lines)
    if not message:
        return type(error).__name__
    plain = isinstance(error, (ValueError, OSError, KeyError)) and not isinstance(error, UnicodeError)
    return message if plain and ' ' in message else f'{type(error).__name__}: {message}'


def _file_handlers() -> list[logging.FileHandler]:
    """The open log files of mmengine's loggers."""
    from mmengine.logging import MMLogger
    loggers = list(getattr(MMLogger, '_instance_dict', {}).values())
    return [handler for logger in loggers for handler in logger.handlers if isinstance(handler, logging.FileHandler)]


def report(error: BaseException) -> None:
    """Print one line to stderr; the traceback goes into the run's log file if there is one."""
    handlers = _file_handlers()
    record = logging.LogRecord('mmpetl', logging.ERROR, __file__, 0, ''.join(traceback.format_exception(error)), None, None)
    for handler in handlers:
        handler.emit(record)
        handler.flush()
    rank = f' (process {os.environ["RANK"]})' if int(os.environ.get('WORLD_SIZE', 1)) > 1 and 'RANK' in os.environ else ''
    where = f'traceback in {handlers[-1].baseFilename}' if handlers else 'traceback with --debug'
    print(f'error{rank}: {one_line(error)} [{where}]', file=sys.stderr, flush=True)


def run_cleanly(main: Callable[[Sequence[str]], Any], argv: Sequence[str]) -> int:
    """Run a command and turn what it raises into one line and an exit status.

    Args:
        main: The command; takes the arguments.
        argv: Its arguments without the program's name. ``--debug`` among them lets errors through.

    Returns:
        0, 1 after an error, 130 after Ctrl-C.
    """
    try:
        main(argv)
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    except Exception as error:
        if debug_wanted(argv):
            raise
        report(error)
        return 1
    torch = sys.modules.get('torch')
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0
