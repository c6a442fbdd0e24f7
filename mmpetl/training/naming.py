# SPDX-License-Identifier: Apache-2.0
"""Errors that name no key: the part of the config from whose building or work they come is put before them."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, List, Optional, Tuple

import torch

from .check import is_plain, leaves
from .check_types import Typed, typed

#: What libraries raise at values that they did not expect. Others (files, full disks, Ctrl-C) name their cause.
UNCLEAR = (TypeError, ValueError, AttributeError, AssertionError, ArithmeticError, LookupError, RuntimeError)


@contextmanager
def naming_keys(cfg: Mapping[str, Any], source: str) -> Iterator[None]:
    """Within the context, errors about values say which part of the config they are about.

    Args:
        cfg: The config of what is built and run.
        source: Its file.

    Raises:
        ValueError: In place of errors that name no key.
    """
    try:
        yield
    except Exception as error:
        line = _missing(error, cfg, source) or _line(error, cfg, source)
        if line is None:
            raise
        raise (FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError)(line) from error


def _missing(error: BaseException, cfg: Mapping[str, Any], source: str) -> Optional[str]:
    """Which key led to a weight file that is not there."""
    if not isinstance(error, FileNotFoundError) or 'no such weight file' not in str(error):
        return None
    files = [(where, value) for where, key, value in leaves({k: cfg.get(k) for k in ('load_from', 'model')})
             if key in ('load_from', 'checkpoint') and isinstance(value, str)]
    key = next((where for where, value in files if str(error).startswith(os.path.expanduser(value) + ':')), None)
    return f'{error}; set {key} of {source} to where it is; mmpetl fetch gets what is published' if key else None


def _line(error: BaseException, cfg: Mapping[str, Any], source: str) -> Optional[str]:
    wrapped = error.__cause__ or error.__context__  # MMEngine adds the hook's address
    cause = wrapped if ' object at 0x' in str(error) and wrapped is not None else error
    if not isinstance(cause, UNCLEAR) and type(cause).__module__ != 'cv2' or isinstance(
            cause, (OSError, torch.OutOfMemoryError)) or source and source in str(cause):
        return None
    frames = _frames(cause) or _frames(error)
    building = any(frame.f_code.co_name == 'build_from_cfg' for frame in frames)
    workers = [frame.f_locals.get('self') for frame in frames]
    files = [str(w.checkpoint) for w in workers if type(w).__name__ == 'PretrainedInit']
    if files and isinstance(cause, ValueError) and files[0] not in str(cause):
        return f'{source}: init_cfg.checkpoint={files[0]!r}: {" ".join(str(cause).split())}'
    loading = any(frame.f_code.co_name in ('load_or_resume', 'load_trained') for frame in frames)
    if loading and isinstance(cause, ValueError) and str(cfg.get('load_from') or source) not in str(cause):
        return f'{cfg.get("load_from") or source}: {" ".join(str(cause).split())}'
    if not building and _is_ours(frames[-1]) and isinstance(cause, (ValueError, RuntimeError)):
        return None  # our own words name what they are about
    if isinstance(cause, KeyError) and cause.args == ('inputs', ):
        return f'{source}: the pipeline of a data set gives no inputs: end it with PackInputs or PackActionInputs'
    parts = list(typed(cfg))
    for frame in reversed(frames):
        found = _part(frame, parts)
        if found is not None:
            said = ' '.join(str(cause.args[0] if isinstance(cause, KeyError) and cause.args else cause).split())
            if isinstance(cause, ValueError) and _is_ours(frames[-1]):
                return f'{source}: {found.where}: {said}'
            unknown = re.match(r'(\S+) is not in the (\w+::)?([\w ]+) registry', said)
            if unknown:
                said = f'there is no {unknown[3]} called {unknown[1]!r}'
            elif not (isinstance(cause, ValueError) and ' ' in said):
                said = f'{type(cause).__name__}: {said}'.rstrip(': ')
            return f'{source}: {found.where} ({_values(found)}): {said.rstrip(".")}; mend these values'
    return None


def _frames(error: BaseException) -> List[FrameType]:
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    return frames


def _is_ours(frame: FrameType) -> bool:
    return str(frame.f_globals.get('__name__')).split('.')[0] == __name__.split('.')[0]


def _part(frame: FrameType, parts: List[Typed]) -> Optional[Typed]:
    """The part of the config that a frame builds, or whose object works in it."""
    if frame.f_code.co_name == 'build_from_cfg':
        built = frame.f_locals.get('cfg')
        same = [part for part in parts if part.node is built]
        alike = [part for part in parts if isinstance(built, Mapping) and _alike(part.node, built)]
        return next(iter([*same, *alike]), None)
    worker = frame.f_locals.get('self')
    names = {cls.__name__ for cls in type(worker).__mro__[:3]} - {'object', 'Module', 'BaseModule', 'Hook'}
    if type(worker).__name__.endswith('OptimWrapperConstructor'):
        return next((part for part in parts if part.where == 'optim_wrapper'), None)
    return next((part for part in parts if worker is not None and _type_of(part)[1] in names), None)


def _alike(node: Mapping[str, Any], built: Mapping[str, Any]) -> bool:
    """Whether what is built was made of a part: the same type, and none of its plain values differs."""
    shown = {k: v for k, v in node.items() if is_plain(v)}
    return bool(shown) and all(k in built and built[k] == v for k, v in shown.items())


def _type_of(part: Typed) -> Tuple[Any, str]:
    kind = part.node.get('type', part.default)
    return kind, (kind if isinstance(kind, str) else getattr(kind, '__name__', '')).split('.')[-1]


def _values(part: Typed) -> str:
    """Type and plain values of a part, short."""
    shown = [f'{k}={v!r:.60}' for k, v in part.node.items()
             if k != 'type' and not isinstance(v, Mapping) and '{' not in repr(v)]
    text = ', '.join([_type_of(part)[1], *shown])
    return text if len(text) <= 200 else text[:197] + '...'


def source_of(cfg: Any) -> str:
    """The file of a config, as its user wrote it where that can be told."""
    path = str(getattr(cfg, 'filename', None) or 'the config')
    near = os.path.relpath(path)
    return near if not near.startswith('..') and os.path.exists(near) else path
