# SPDX-License-Identifier: Apache-2.0
"""Hints for names that nobody knows."""

import difflib
from typing import Dict, Iterable, List

#: Most names that one line lists.
MOST = 24


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint ``; did you mean 'a' or 'b'?`` for an unknown name, or the known names when nothing is near."""
    known = list(dict.fromkeys(str(k) for k in known))
    # Large and small letters count as equal: 'Lora' is nearer to 'LoRA' than to 'LoHa'.
    folded: Dict[str, List[str]] = {}
    for one in known:
        folded.setdefault(one.casefold(), []).append(one)
    wanted = str(name).casefold()
    near = [wanted] if wanted in folded else difflib.get_close_matches(wanted, folded, n=3, cutoff=0.5)
    close = [one for key in near for one in folded[key]][:3]
    if close:
        return '; did you mean ' + ' or '.join(repr(c) for c in close) + '?'
    more = f' and {len(known) - MOST} more' if len(known) > MOST + 1 else ''
    return '; known: ' + ', '.join(known[:MOST] if more else known) + more
