# SPDX-License-Identifier: Apache-2.0
"""``torch.load`` that can open every honest checkpoint of the OpenMMLab stack and runs nothing.

``weights_only=True`` refuses the checkpoints that MMEngine's own Runner writes, because its message hub holds
``HistoryBuffer`` objects. The names below are the least that makes them load. ``builtins.getattr`` is among the pickled
names (a buffer pickles its four bound statistics methods); it is answered by a function that gives out those four and
nothing else.
"""

import argparse
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import numpy as np
import torch

from .errors import WeightFileError
from .guards import MAX_RATIO, SMALL

#: Where torch's messages name what a pickle asked for.
_REFUSALS = (r"but got <class '([\w.]+)'>",
             r'Unsupported (?:global|class|operand)[^A-Za-z]*(?:GLOBAL )?([\w.]+(?:\([^)]*\))?)',
             r'(?:instantiate|GLOBAL|class) (\w+(?:\.\w+)+)')
_STATISTICS = ('min', 'max', 'mean', 'current')


def _history_buffer() -> type | None:
    try:
        from mmengine.logging.history_buffer import HistoryBuffer
    except ImportError:  # MMEngine is needed for its own checkpoints only
        return None
    return HistoryBuffer


def restricted_getattr(owner: Any, name: str) -> Callable[..., Any]:
    """Stand-in for ``getattr`` inside a checkpoint: the four statistics methods of ``HistoryBuffer``, nothing else.

    Raises:
        pickle.UnpicklingError: For any other object or attribute.
    """
    buffer = _history_buffer()
    if buffer is None or owner is not buffer or type(name) is not str or name not in _STATISTICS:
        raise pickle.UnpicklingError(f'Unsupported global: GLOBAL builtins.getattr({owner!r:.60}, {name!r:.60})')
    # vars and not getattr: nothing that a class computes is run.
    return vars(buffer)[name]


def allowed_globals() -> list[Any]:
    """The allow-list handed to ``torch.serialization.safe_globals``: callables, or pairs (callable, pickled name)."""
    # the two functions that numpy names when it pickles an array and a number
    reconstruct, scalar = np.empty(0).__reduce__()[0], np.float64(0).__reduce__()[0]
    names: list[Any] = [
        reconstruct, scalar, np.ndarray, np.dtype, np.dtypes.Float64DType, np.dtypes.Int64DType,
        # files written under numpy 1 call the same two functions by their old address
        (reconstruct, 'numpy.core.multiarray._reconstruct'), (scalar, 'numpy.core.multiarray.scalar'),
        (restricted_getattr, 'builtins.getattr'), argparse.Namespace,
    ]
    buffer = _history_buffer()
    return names if buffer is None else [buffer, *names]


def load_pickle(path: str, map_location: Any, size: int) -> Any:
    """Load a torch file, zip or legacy, with ``weights_only=True``.

    Args:
        path (str): The file.
        map_location: As for :func:`torch.load`.
        size (int): Its size in bytes.

    Returns:
        Any: The pickled object.

    Raises:
        WeightFileError: A global outside the allow-list, a damaged file, or tensors far larger than the file.
    """
    try:
        with torch.serialization.safe_globals(allowed_globals()):
            loaded = torch.load(path, map_location=map_location, weights_only=True)
    # torch raises RuntimeError, UnpicklingError, EOFError, KeyError, UnicodeDecodeError, ...
    except Exception as error:
        _explain(path, error)
    logical = sum(t.numel() * t.element_size() for t in _tensors(loaded, set()) if t.layout is torch.strided)
    if logical > max(SMALL, MAX_RATIO * size):
        raise WeightFileError(path, f'tensors of {logical} bytes announced in a file of {size}', 'do not use this file')
    return loaded


def _explain(path: str, error: Exception) -> NoReturn:
    text = str(error).split('WeightsUnpickler error:')[-1]
    match = next((match for pattern in _REFUSALS if (match := re.search(pattern, text))), None)
    if match:
        raise WeightFileError(path, f'refused: the pickle asks for {match.group(1)}, which a weight file does not need',
                              'nothing was run; if you trust the file, re-save its state_dict alone') from None
    if isinstance(error, pickle.UnpicklingError) or 'weights_only' in text or 'Weights only' in text:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        raise WeightFileError(path,
                              f'refused: not a plain state dict: {lines[0][:200] if lines else type(error).__name__}',
                              'nothing was run; re-save its state_dict alone') from None
    raise WeightFileError(path, f'damaged or truncated torch file: {type(error).__name__}: {text[:200]}',
                          'download or copy the file again') from None


def _tensors(value: Any, seen: set[int]) -> list[torch.Tensor]:
    """All tensors inside nested mappings, lists and tuples; each container is entered once."""
    found: list[torch.Tensor] = []
    stack = [value]
    while stack:
        item = stack.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, torch.Tensor):
            found.append(item)
        elif isinstance(item, Mapping):
            stack.extend(item.values())
        elif isinstance(item, (list, tuple, set)):
            stack.extend(item)
    return found
