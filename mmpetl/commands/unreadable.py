# SPDX-License-Identifier: Apache-2.0
"""Files that cannot be read: refused with the option that leaves them out, or named and counted."""

import argparse
from typing import IO, Optional, Sequence

OPTION = '--skip-unreadable'


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--skip-unreadable``."""
    parser.add_argument(OPTION, action='store_true', help='leave out files that cannot be read')


def leave_out(wrong: Sequence[str], total: int, kind: str, skip: bool, file: Optional[IO[str]] = None) -> str:
    """Print one line per file that cannot be read.

    Args:
        wrong: What is wrong, a text per file that begins with its name.
        total: How many files there are.
        kind: 'picture', 'video' or 'file'.
        skip: Whether they may be left out.
        file: Where the lines go; default stdout.

    Returns:
        ``'1 unreadable picture is left out'``; '' if all can be read.

    Raises:
        ValueError: If some cannot be read and must not be left out, or none can.
    """
    for line in wrong:
        print(f'unreadable: {line}', file=file)
    if wrong and not skip:
        raise ValueError(f'{len(wrong)} of {total} {kind}s cannot be read: mend them, or leave them out by {OPTION}')
    if wrong and len(wrong) == total:
        raise ValueError(f'none of the {total} {kind}s can be read: give others (the lines above say what is wrong)')
    return f'{len(wrong)} unreadable {kind}{" is" if len(wrong) == 1 else "s are"} left out' if wrong else ''
