# SPDX-License-Identifier: Apache-2.0
"""Which sample an error is about: its number, its file and, in a loader's worker, the transform that failed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.utils.data import get_worker_info


@contextmanager
def naming_sample(dataset: Any, index: int) -> Iterator[None]:
    """Within the context, errors name the sample that is read, where they do not name its file themselves.

    The error stays the same object, so that whoever catches it finds its type and traceback. A worker hands over the
    text alone; there the transform is named too.

    Args:
        dataset: A dataset whose ``get_data_info`` knows files; others are left alone.
        index: Number of the sample.
    """
    try:
        yield
    except Exception as error:
        if len(error.args) < 2 and not isinstance(error, OSError):
            _add(error, dataset, int(index))
        raise


def _add(error: Exception, dataset: Any, index: int) -> None:
    """Write into an error's message which sample it was, unless the message says so."""
    said, file = str(error.args[0]) if error.args else '', _file_of(dataset, index)
    frames, trace = [], error.__traceback__
    while trace is not None:
        frames.append(trace.tb_frame)
        trace = trace.tb_next
    # Errors that this package raises say how to mend things; those of transforms and libraries do not.
    ours = str(frames[-1].f_globals.get('__name__')).split('.')[0] == __name__.split('.')[0]
    named = not file or os.path.basename(file) in said
    # Without workers the traceback leads to the transform; an error out of a worker comes as text alone.
    if named and (ours or get_worker_info() is None):
        return
    more = [f'sample {index}', *([] if named else [file])]
    if get_worker_info() is not None and not ours:
        # The outermost transform that was at work.
        steps = [type(f.f_locals.get('self')).__name__ for f in frames if f.f_code.co_name == 'transform']
        more += [*(f'in {name}' for name in steps[:1]), 'mend the file, or the transform']
    error.args = (f'{said} ({", ".join(more)})'.strip(), )


def _file_of(dataset: Any, index: int) -> str:
    """The file of a sample; '' where nobody knows it."""
    try:
        info = dataset.get_data_info(index)
        return str(info.get('img_path') or info.get('filename') or '')
    except Exception:  # the error that is on its way is the one that counts
        return ''
