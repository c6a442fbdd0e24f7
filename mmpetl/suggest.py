# SPDX-License-Identifier: Apache-2.0
"""Hints for names that nobody knows."""

import difflib
from typing import Iterable

#: Most names that one line lists.
MOST = 24


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint ``; did you mean 'a' or 'b'?`` for an unknown name, or the known names when nothing is near."""
    known = list(dict.fromkeys(str(k) for k in known))
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    if close:
        return '; did you mean ' + ' or '.join(repr(c) for c in close) + '?'
    more = f' and {len(known) - MOST} more' if len(known) > MOST + 1 else ''
    return '; known: ' + ', '.join(known[:MOST] if more else known) + more
